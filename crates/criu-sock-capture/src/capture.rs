//! The capture: CRIU's files and external ones, as they come, into one stream.

use crate::dump::{Dump, News};
use crate::error::Error;
use crate::inflow::Inflow;
use crate::{Args, NAME};
use cli::{
    Child, Cleanup, Counters, Descriptors, Failure, OutputError, Place, Program, Progress,
    SourceError, StreamOutput, new_image_id,
};
use criu_protocol::{Direction, Listener, ProtocolError};
use pipe_io::inherit;
use pipe_io::poll::{self, PollFd, PollFlags};
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use wire_format::FileName;

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    let stdout = descriptors.take(&Place::Stdout, inherit::Direction::Output)?;
    let progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;
    let external = descriptors.take_external(args.external, inherit::Direction::Input)?;

    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    let mut child = None;
    let outcome = (|| {
        program.attend_signals(&counters).map_err(Error::System)?;
        let (listener, socket) = Cleanup::of(|| {
            let listener = Listener::bind(&args.images_dir, Direction::Capture)?;
            let path = listener.path().to_owned();
            Ok((listener, path))
        })
        .map_err(Error::Listen)?;
        let mut output = StreamOutput::new(stdout, Arc::clone(&counters));
        let id = args.image_id.map_or_else(new_image_id, Ok).map_err(Error::System)?;
        output.identify(id);
        let inflows = external
            .into_iter()
            .map(|(name, place, source)| Inflow::external(name, place, source))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::System)?;
        let mut capture = Capture {
            _socket: socket,
            listener,
            dump: None,
            external: inflows.iter().map(|inflow| inflow.name.clone()).collect(),
            open: inflows.iter().map(|inflow| inflow.name.clone()).collect(),
            end_at_inventory: args.end_at_inventory,
            inflows,
            successors: Vec::new(),
            output,
            progress,
        };
        capture.progress.socket_init();
        child = Child::start(NAME, &args.command.command)?;
        program.confine();
        capture.run(&mut child)?;
        capture.finish()?.finished(&counters);
        Ok(())
    })();
    // All of the capture is closed: what CRIU still sends fails.
    Child::conclude(child, outcome, Error::is_effect_of_criu_s_end).map_err(Error::into_failure)
}

/// If a wake-up moved less than this, in bytes, pause so that more can accumulate, unless a writer
/// waits for room in its pipe.
const NAP_BELOW: u64 = 64 << 10;
/// How long: small files cost mostly the wake-up for each.
const NAP: Duration = Duration::from_micros(100);

/// How much of CRIU's news is heard before what has come is moved on. CRIU does not wait until its
/// small files are read, so all those that its socket holds would be open here at once: some 280
/// with the default `net.core.wmem_default`, and more than there are descriptors where that is
/// tuned. Throughput is the same with 64, 128 and without a limit; with 16 it is a fifth less.
const NEWS_AT_ONCE: usize = 64;

/// A capture that goes on.
struct Capture {
    /// Goes before the listener does: another capture could take the place of a socket that
    /// nobody listens on, and then it would be theirs that is removed.
    _socket: Cleanup,
    /// Kept when CRIU has connected, so that no second capture can take the socket's place.
    listener: Listener,
    dump: Option<Dump>,
    /// Whether the stream ends while CRIU still waits to hear that the image is safe.
    end_at_inventory: bool,
    /// The names of the external files.
    external: Vec<FileName>,
    /// The files that are open now. No two have the same name.
    inflows: Vec<Inflow>,
    /// Their names: there may be thousands of files.
    open: HashSet<FileName>,
    /// Files that CRIU has opened again, before the end of the earlier ones was seen.
    successors: Vec<Inflow>,
    output: StreamOutput,
    progress: Progress,
}

/// What was moved at once.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    bytes: u64,
    /// Whether a pipe was full, or as good as that.
    was_full: bool,
}

/// What there is to do.
struct Ready {
    criu: bool,
    /// One for each inflow.
    inflows: Vec<PollFlags>,
    /// Whether the command has news.
    child: bool,
}

impl Capture {
    fn run(&mut self, child: &mut Option<Child>) -> Result<(), Error> {
        while !self.is_complete(child.as_ref())? {
            self.output.flush()?;
            let ready = self.wait(child.as_ref())?;
            let moved = self.drain(&ready.inflows)?;
            if ready.criu {
                self.hear_criu(child.as_ref())?;
            }
            if let Some(child) = child.as_mut().filter(|_| ready.child) {
                self.attend(child)?;
            }
            if moved.bytes < NAP_BELOW && !moved.was_full {
                thread::sleep(NAP);
            }
        }
        Ok(())
    }

    /// Takes note of the command's end. One that CRIU has not connected for, and will not, has
    /// brought no dump.
    fn attend(&mut self, child: &mut Child) -> Result<(), Error> {
        child.attend()?;
        if child.has_ended() {
            self.hear_criu(Some(child))?;
            if self.dump.is_none() {
                return Err(Error::Command(child.unconnected()));
            }
        }
        Ok(())
    }

    /// Ends the stream, when its reader has all of it. What is not taken yet is the memory of the
    /// process: where CRIU waits for the end of the stream, it must wait until then.
    fn finish(self) -> Result<Progress, Error> {
        let Capture { output, dump, progress, end_at_inventory, .. } = self;
        let criu = dump.as_ref().filter(|_| end_at_inventory).map(Dump::as_fd);
        match output.finish_while(criu)? {
            true => Ok(progress),
            false => Err(Error::DidNotWait),
        }
    }

    /// Whether all of the image is in the stream. A dump that failed is an error, as soon as
    /// everything has come that CRIU has left behind. It may still fail when CRIU has hung up: so
    /// the command must have ended, unless CRIU waits for the end of the stream.
    fn is_complete(&mut self, child: Option<&Child>) -> Result<bool, Error> {
        match &mut self.dump {
            Some(dump) if dump.has_sent_inventory() && dump.lacks_memory() => Err(Error::NoMemory),
            Some(dump) if self.end_at_inventory && dump.has_sent_inventory() => {
                if dump.has_hung_up() {
                    Err(Error::DidNotWait)
                } else if dump.is_sending() || !self.inflows.is_empty() {
                    Ok(false)
                } else {
                    dump.end().map(|()| true)
                }
            }
            Some(dump) if dump.has_hung_up() && !self.inflows.iter().any(Inflow::is_criu) => {
                match dump.has_sent_all() && !self.end_at_inventory {
                    true => Ok(self.inflows.is_empty() && child.is_none_or(Child::has_ended)),
                    false => Err(Error::DumpFailed),
                }
            }
            _ => Ok(false),
        }
    }

    /// Waits until CRIU says something, a file has bytes or ends, the command ends, or the reader
    /// of the stream has gone.
    fn wait(&self, child: Option<&Child>) -> Result<Ready, Error> {
        let for_input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![PollFd::new(self.output.endpoint().as_fd(), PollFlags::empty())];
        fds.extend(self.inflows.iter().map(|inflow| for_input(inflow.as_fd())));
        match &self.dump {
            None => fds.push(for_input(self.listener.as_fd())),
            Some(dump) if !dump.has_hung_up() => fds.push(for_input(dump.as_fd())),
            Some(_) => {}
        }
        let of_criu = fds.len() - 1 - self.inflows.len();
        fds.extend(child.iter().flat_map(|child| child.fds()).map(for_input));
        poll::wait(&mut fds).map_err(Error::System)?;

        let mut events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if events.next().is_some_and(|events| events.intersects(poll::READER_GONE)) {
            return Err(Error::Output(OutputError::reader_gone()));
        }
        let inflows = events.by_ref().take(self.inflows.len()).collect();
        let criu = events.by_ref().take(of_criu).any(|events| !events.is_empty());
        let child = events.any(|events| !events.is_empty());
        Ok(Ready { criu, inflows, child })
    }

    fn hear_criu(&mut self, child: Option<&Child>) -> Result<(), Error> {
        let Some(dump) = &mut self.dump else {
            if let Some(connection) = self.listener.accept().map_err(ProtocolError::Io)? {
                self.listener.refuse_more();
                child.iter().for_each(|child| child.connected());
                self.dump = Some(Dump::new(connection));
            }
            return Ok(());
        };
        for _ in 0..NEWS_AT_ONCE {
            let Some(news) = dump.news()? else { break };
            match news {
                News::Frozen => self.progress.checkpoint_start(),
                News::File(name, pipe) => {
                    if self.external.contains(&name) {
                        return Err(Error::NameClash(name));
                    }
                    let inflow = Inflow::criu(name, pipe)?;
                    match self.open.insert(inflow.name.clone()) {
                        true => self.inflows.push(inflow),
                        false => self.successors.push(inflow),
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves what the files have that were ready, and ends those that are complete. Returns how
    /// much was moved.
    fn drain(&mut self, ready: &[PollFlags]) -> Result<Moved, Error> {
        let mut ended = Vec::new();
        let mut moved = Moved::default();
        for (index, (inflow, events)) in self.inflows.iter_mut().zip(ready).enumerate() {
            if events.is_empty() {
                continue;
            }
            let hung_up = events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
            let available = inflow.fetch(hung_up)?;
            if available.bytes > 0 {
                moved.bytes += u64::from(available.bytes);
                moved.was_full |= available.is_full;
                self.output.data(&inflow.name, available.bytes)?;
                self.output.payload(inflow.pipe(), available.bytes).map_err(
                    |error| match error {
                        SourceError::Output(error) => Error::Output(error),
                        SourceError::Source(_, error) => inflow.failed(error),
                    },
                )?;
            }
            if available.end {
                self.output.file_eof(&inflow.name)?;
                ended.push(index);
            }
        }
        for index in ended.into_iter().rev() {
            let ended = self.inflows.remove(index);
            match self.successors.iter().position(|next| next.name == ended.name) {
                Some(next) => self.inflows.push(self.successors.remove(next)),
                None => _ = self.open.remove(&ended.name),
            }
        }
        Ok(moved)
    }
}
