//! One file on its way to CRIU.

use crate::error::Error;
use crate::pause::Pause;
use crate::store::{self, Handed, Piece};
use criu_protocol::is_read_when_opened;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::{Endpoint, pipe, splice};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A file that is being sent.
#[derive(Debug)]
pub(crate) struct Outflow {
    /// The number of the client that has opened it.
    pub(crate) client: usize,
    /// No other file has it that was opened.
    pub(crate) number: u64,
    pub(crate) file: Handed,
    /// How much of the first piece was sent.
    sent: usize,
    /// How much of the file was sent.
    sent_in_all: u64,
    pipe: Endpoint,
    /// The capacity that the pipe has, or had before it was to have one slot, in bytes.
    capacity: usize,
    reading: Reading,
    /// Whether its reader has made room since the pipe was full.
    has_room: bool,
    /// When the pipe is left to its reader although it has room.
    pause: Pause,
    /// If the first splice of this turn had to wait for a reader that copied: when that was done.
    met_until: Option<Instant>,
    /// When to look for room, where nobody may tell of it.
    looks_at: Option<Instant>,
}

/// Whether CRIU reads what it has opened.
///
/// It takes the size of some files by fstat, which is 0 for a pipe, and then closes them unread,
/// nftables rules among them; from others it would read at an offset, which a pipe refuses. Some
/// it reads in part, which is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It does, as all that would not fit into the pipe shows, or as it must; or nothing is lost if
    /// it does not.
    Seen,
    /// It shows when CRIU closes the pipe.
    Unseen,
    /// All of the file would fit into the pipe, and lie there unseen. So the pipe has one page
    /// slot, and is ready when CRIU has emptied it or has closed it.
    InOneSlot,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poured {
    /// There is more to be sent.
    Some,
    /// All is sent.
    All,
    /// CRIU has closed the pipe, and has read what it wanted.
    Left,
    /// CRIU has closed the pipe, and has not read one byte.
    Unread,
}

/// How many pieces, or parts of them, one file may send before the others have their turn: a
/// reader that keeps up would keep us from answering anybody else.
const TURNS: usize = 16;

/// When to look for room in a pipe that may not have been full, in times of a rest.
const LOOK_AFTER: u32 = 4;

/// What a page slot takes of a file on every kernel, in bytes.
const SLOT: usize = 4096;

impl Outflow {
    /// Sends a file through the pipe that CRIU has sent for it, which may be of no use to it. The
    /// pipe is ours alone, as CRIU closes its own descriptor of this end.
    pub(crate) fn new(
        client: usize,
        number: u64,
        file: Handed,
        is_needless: bool,
        pipe: OwnedFd,
    ) -> Result<Outflow, Error> {
        let Ok((pipe, mut capacity)) = Endpoint::own_pipe(pipe) else {
            return Err(Error::NotAPipe(file.name));
        };
        if !file.complete || file.pieces.iter().any(|piece| !matches!(piece, Piece::Kept(_))) {
            capacity = pipe::grow(&pipe, pipe::WANTED).unwrap_or(capacity);
        }
        let reading = match is_needless {
            true => Reading::Seen,
            false => reading(&file, &pipe, capacity),
        };
        Ok(Outflow {
            client,
            number,
            file,
            sent: 0,
            sent_in_all: 0,
            pipe,
            capacity,
            reading,
            has_room: true,
            pause: Pause::new(capacity),
            met_until: None,
            looks_at: None,
        })
    }

    /// Notes that its reader has made room, or has gone.
    pub(crate) fn was_emptied(&mut self, now: Instant) {
        self.looks_at = None;
        let was_full = !std::mem::replace(&mut self.has_room, true);
        match was_full && self.reading != Reading::InOneSlot {
            true => self.pause.begin(now),
            // Its reader may be waiting, or be gone.
            false => self.pause.stop(),
        }
    }

    /// Whether little is left to be sent of what has come, and more will come.
    pub(crate) fn is_hungry(&self) -> bool {
        /// With one piece, there may be nothing to send until another thread was woken up.
        const ENOUGH: usize = 2;

        !self.file.complete && self.file.pieces.len() < ENOUGH
    }

    /// When something can be sent, if all there is to wait for is time.
    pub(crate) fn next_turn(&self, now: Instant) -> Option<Duration> {
        let wants_room = self.file.complete || !self.file.pieces.is_empty();
        match self.looks_at {
            Some(at) => Some(at.saturating_duration_since(now)),
            None => (self.has_room && wants_room).then(|| self.pause.left(now)),
        }
    }

    /// Sends what there is room for. Call when its turn has come, or the pipe was just opened.
    pub(crate) fn pour(&mut self, image: Option<&Endpoint>) -> Result<Poured, Error> {
        // What is found then says nothing of how the reader reads.
        let only_looks = self.looks_at.take().is_some();
        self.met_until = None;
        let late = self.pause.end();
        let poured = self.send_some(image);
        if !self.has_room && self.reading != Reading::InOneSlot && !only_looks {
            self.pause.learn(self.met_until, late);
        }
        poured
    }

    /// Sends some of the first piece, at most so many bytes, and notes if that was kept waiting when
    /// it is the first of this turn: later ones meet a reader of what was just sent.
    fn send_first(
        &mut self,
        most: usize,
        is_first: bool,
        image: Option<&Endpoint>,
    ) -> io::Result<usize> {
        /// A call that waits for nobody is not so late, unless it was interrupted.
        const PROMPT: Duration = Duration::from_micros(10);

        let Some(piece) = self.file.pieces.front() else { return Ok(0) };
        let start = Instant::now();
        let sent = send(piece, self.sent, most, &self.pipe, image);
        let end = Instant::now();
        let usual = splice::usual_time(sent.as_ref().copied().unwrap_or(0));
        // What comes from a file waits for the disk, and what comes from memory is looked up page by
        // page.
        let moves = matches!(piece, Piece::Pipe(..));
        if is_first && moves && end - start > usual + PROMPT {
            self.met_until = Some(end);
        }
        sent
    }

    fn send_some(&mut self, image: Option<&Endpoint>) -> Result<Poured, Error> {
        if self.reading == Reading::InOneSlot && self.sent_in_all > 0 {
            // The slot was full: the pipe is ready because it is empty, or closed, or both.
            if !self.was_read()? {
                return Ok(Poured::Unread);
            }
            self.reading = Reading::Seen;
            self.capacity = pipe::grow(&self.pipe, self.capacity).unwrap_or(0);
            self.pause = Pause::new(self.capacity);
        }
        let before = self.sent_in_all;
        let mut turns = TURNS;
        while let Some(piece) = self.file.pieces.front() {
            if turns == 0 {
                return Ok(Poured::Some);
            }
            turns -= 1;
            let left = length(piece).saturating_sub(self.sent as u64);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            if left == 0 {
                self.file.pieces.pop_front();
                self.sent = 0;
                continue;
            }
            let most = match self.reading {
                Reading::InOneSlot => left.min(SLOT),
                Reading::Seen | Reading::Unseen => left,
            };
            match self.send_first(most, self.sent_in_all == before, image) {
                Ok(0) => return Err(self.failed(ErrorKind::UnexpectedEof.into())),
                Ok(moved) => {
                    self.sent += moved;
                    self.sent_in_all += moved as u64;
                    if moved < left || self.reading == Reading::InOneSlot {
                        return self.is_filled();
                    }
                    let goes_on = self.file.pieces.len() > 1;
                    if goes_on && moved as u64 >= seven_eighths(self.capacity) {
                        return Ok(self.is_as_good_as_filled());
                    }
                    let sent = self.sent_in_all - before;
                    if goes_on && self.met_until.is_some() && sent >= pipe::ONE_READ as u64 {
                        return Ok(self.is_enough());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.is_filled(),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return self.left(),
                Err(error) => return Err(self.failed(error)),
            }
        }
        match self.file.complete {
            true => Ok(Poured::All),
            false => self.look(),
        }
    }

    /// Less was sent than there is: the pipe is full. Another attempt would find out no more, and
    /// would have to wait for a reader that holds the pipe's mutex as long as it copies.
    fn is_filled(&mut self) -> Result<Poured, Error> {
        self.has_room = false;
        // From a file less may have come for another reason. Then nobody tells of the room.
        if matches!(self.file.pieces.front(), Some(Piece::Range(..)))
            && self.reading != Reading::InOneSlot
            && self.is_writable()?
        {
            self.has_room = true;
            self.pause.begin_unlearned(Instant::now(), pipe::rest(self.capacity));
        }
        Ok(Poured::Some)
    }

    /// A piece was sent that fills the pipe, or all but a few slots of it. Its reader may have begun
    /// to copy, and would keep us waiting. As nobody tells of room in a pipe that was not full, it
    /// is looked for in a while.
    fn is_as_good_as_filled(&mut self) -> Poured {
        self.has_room = false;
        self.looks_at = Some(Instant::now() + LOOK_AFTER * pipe::rest(self.capacity));
        Poured::Some
    }

    /// The reader was met, and has enough for its next read, during which nothing can be sent.
    fn is_enough(&mut self) -> Poured {
        self.pause.begin(Instant::now());
        Poured::Some
    }

    fn is_writable(&self) -> Result<bool, Error> {
        poll::is_writable(&self.pipe).map_err(|error| self.failed(error))
    }

    /// Sends nothing, and sees whether CRIU has closed the pipe.
    pub(crate) fn look(&self) -> Result<Poured, Error> {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::empty())];
        match poll::look(&mut fds).map_err(|error| self.failed(error))? {
            true => self.left(),
            false => Ok(Poured::Some),
        }
    }

    /// CRIU has closed the pipe.
    fn left(&self) -> Result<Poured, Error> {
        Ok(if self.was_read()? { Poured::Left } else { Poured::Unread })
    }

    /// Whether CRIU has read anything, as far as it matters.
    fn was_read(&self) -> Result<bool, Error> {
        // It may have died while it waited for more to come.
        if self.reading == Reading::Seen || (self.sent_in_all == 0 && !self.file.complete) {
            return Ok(true);
        }
        let queued = pipe::queued(&self.pipe).map_err(|error| self.failed(error))?;
        Ok((queued as u64) < self.sent_in_all)
    }

    /// Empties one pipe of what is still to be sent into memory, for its descriptor; `false` if
    /// there is none.
    pub(crate) fn give_up_a_pipe(&mut self) -> io::Result<bool> {
        if let Some(Piece::Pipe(_, bytes)) = self.file.pieces.front_mut() {
            // What was sent is not there any more.
            *bytes = bytes.saturating_sub(self.sent as u64);
            self.sent = 0;
        }
        store::give_up_a_pipe(self.file.pieces.iter_mut())
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Send(self.file.name.clone(), error)
    }
}

impl AsFd for Outflow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Of the bytes of a pipe.
fn seven_eighths(capacity: usize) -> u64 {
    (capacity as u64).saturating_mul(7) / 8
}

fn length(piece: &Piece) -> u64 {
    match piece {
        Piece::Pipe(_, bytes) => *bytes,
        Piece::Region(region) => region.bytes().len() as u64,
        Piece::Kept(bytes) => bytes.len() as u64,
        Piece::Range(_, length) => *length,
    }
}

/// Finds out how it will show whether CRIU reads the file, for a pipe of this capacity.
fn reading(file: &Handed, pipe: &Endpoint, capacity: usize) -> Reading {
    let Handed { pieces, complete, .. } = file;
    let bytes: u64 = pieces.iter().map(length).sum();
    match pieces.front() {
        Some(Piece::Kept(start)) if is_read_when_opened(start) => Reading::Seen,
        _ if !complete => Reading::Unseen,
        _ if bytes == 0 => Reading::Seen,
        _ if bytes <= capacity as u64 && pipe::shrink(pipe, SLOT) => Reading::InOneSlot,
        _ => Reading::Unseen,
    }
}

/// Sends some of what is left of a piece, at most so many bytes, without waiting.
fn send(
    piece: &Piece,
    sent: usize,
    most: usize,
    pipe: &Endpoint,
    image: Option<&Endpoint>,
) -> io::Result<usize> {
    match piece {
        Piece::Pipe(store, _) => splice::splice_now(store, pipe, most),
        // The memory is not changed any more, only given back: its pages live on in the pipe.
        Piece::Region(region) => splice::vmsplice_now(pipe, window(region.bytes(), sent, most)),
        Piece::Kept(bytes) => pipe.write_now(window(bytes, sent, most)),
        Piece::Range(offset, _) => match image {
            Some(image) => splice::splice_file_now(image, offset + sent as u64, pipe, most),
            None => Ok(0),
        },
    }
}

/// At most so many bytes behind those that were sent.
fn window(bytes: &[u8], sent: usize, most: usize) -> &[u8] {
    let left = bytes.get(sent..).unwrap_or_default();
    left.get(..most).unwrap_or(left)
}
