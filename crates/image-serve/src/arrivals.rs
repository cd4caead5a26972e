//! What arrives of the image while CRIU already reads it.
//!
//! A thread takes in the stream, as it is taken in when all of it must be there first, and may wait
//! for it as long as it must; what it has of each file it hands on to the one that serves CRIU.

use crate::error::Error;
use crate::load::Load;
use crate::store::Piece;
use criu_protocol::is_memory;
use pipe_io::Endpoint;
use pipe_io::pipe::Pipe;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use wire_format::FileName;

/// What has come.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// More of a file.
    Piece(FileName, Piece),
    /// A file is complete.
    Ends(FileName),
    /// The image is complete, and all is as it should be. Nothing more comes.
    Whole,
    /// It will not be. Nothing more comes.
    Failed(Error),
}

/// Where the thread puts what has come.
#[derive(Debug)]
pub(crate) struct Sink {
    sender: Sender<Arrival>,
    bell: Endpoint,
    /// Whether somebody waits for more of a file.
    hungry: Arc<AtomicBool>,
}

impl Sink {
    /// Hands on what has come. When nobody wants it any more, the program is about to end.
    ///
    /// As long as CRIU has enough to read, the pieces of files wait to be asked for: to wake up
    /// the other thread for each would cost more than to move it.
    pub(crate) fn put(&self, arrival: Arrival) {
        let is_piece = matches!(arrival, Arrival::Piece(..));
        let is_sent = self.sender.send(arrival).is_ok();
        // The order is that of `Arrivals::await_more`, the other way round.
        if is_sent && (self.hungry.swap(false, Ordering::SeqCst) || !is_piece) {
            // A pipe that is full is heard too.
            let _ = self.bell.write_now(&[0]);
        }
    }
}

/// Where it is taken from. As a descriptor it is readable when something has come.
#[derive(Debug)]
pub(crate) struct Arrivals {
    receiver: Receiver<Arrival>,
    bell: Endpoint,
    hungry: Arc<AtomicBool>,
    newest: Option<Newest>,
    /// What CRIU may have now.
    due: VecDeque<Arrival>,
    /// Whether the image is whole.
    is_whole: bool,
}

/// The newest piece of memory that has come.
///
/// CRIU gets it when another has come after it, or the end of the image. It reads memory to its
/// last byte, so without this piece no restore can finish, and nothing runs of an image that is not
/// whole.
#[derive(Debug)]
pub(crate) struct Newest {
    pub(crate) name: FileName,
    pub(crate) piece: Piece,
    /// Whether its file ends with it.
    pub(crate) is_last: bool,
}

impl Arrivals {
    /// Goes on with loading the image in a thread.
    pub(crate) fn of(load: Load, newest: Option<Newest>) -> io::Result<Arrivals> {
        let Pipe { read, write } = Pipe::new()?;
        let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
        let (bell, ring) = (endpoint(read)?, endpoint(write)?);
        ring.set_nonblocking()?;
        let (sender, receiver) = channel();
        let hungry = Arc::new(AtomicBool::new(false));
        let sink = Sink { sender, bell: ring, hungry: Arc::clone(&hungry) };
        thread::Builder::new().name("load".into()).spawn(move || load.go_on(sink))?;
        Ok(Arrivals { receiver, bell, hungry, newest, due: VecDeque::new(), is_whole: false })
    }

    /// Call when it is readable, before [`Arrivals::next`] is asked for all that has come.
    pub(crate) fn hear(&mut self) -> io::Result<()> {
        let mut bell = &self.bell;
        // However often it has rung; at its end, the thread has ended too.
        bell.read(&mut [0; 64]).map(drop)
    }

    /// Has the bell ring for the next piece, too. What has come before must be asked for with
    /// [`Arrivals::next`] after this call.
    pub(crate) fn await_more(&self) {
        self.hungry.store(true, Ordering::SeqCst);
    }

    /// What CRIU may have next, or `None` if that has not come.
    pub(crate) fn next(&mut self) -> Result<Option<Arrival>, Error> {
        while self.due.is_empty() && !self.is_whole {
            match self.receiver.try_recv() {
                Ok(arrival) => self.take(arrival),
                Err(TryRecvError::Empty) => return Ok(None),
                // The thread has ended and has not said why.
                Err(TryRecvError::Disconnected) => {
                    return Err(Error::System(ErrorKind::BrokenPipe.into()));
                }
            }
        }
        Ok(self.due.pop_front())
    }

    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Piece(name, piece) if is_memory(name.as_str()) => {
                self.release();
                self.newest = Some(Newest { name, piece, is_last: false });
            }
            Arrival::Ends(name) => match &mut self.newest {
                Some(newest) if newest.name == name => newest.is_last = true,
                _ => self.due.push_back(Arrival::Ends(name)),
            },
            Arrival::Whole => {
                self.is_whole = true;
                self.due.push_back(Arrival::Whole);
                self.release();
            }
            arrival => self.due.push_back(arrival),
        }
    }

    /// Lets the newest piece go.
    fn release(&mut self) {
        if let Some(Newest { name, piece, is_last }) = self.newest.take() {
            self.due.push_back(Arrival::Piece(name.clone(), piece));
            if is_last {
                self.due.push_back(Arrival::Ends(name));
            }
        }
    }
}

impl AsFd for Arrivals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
