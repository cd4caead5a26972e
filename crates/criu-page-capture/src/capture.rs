//! The capture: memory as it comes, then the small files.

use crate::around::Around;
use crate::error::Error;
use crate::memory::Incoming;
use crate::wire::Wire;
use cli::{Child, StreamOutput};
use criu_protocol::page_server::{Command, Memory, Order, Run};
use criu_protocol::page_size;
use pipe_io::{Kind, Pace};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use wire_format::{FileName, ImageId};

/// A capture that goes on.
#[derive(Debug)]
pub(crate) struct Capture<'a> {
    pub(crate) wire: Wire,
    pub(crate) around: &'a mut Around,
    pub(crate) output: StreamOutput,
    /// The image that comes about.
    pub(crate) id: ImageId,
    /// The one that it is an increment of.
    pub(crate) parent: Option<ImageId>,
    /// Whether the stream ends while CRIU still waits to hear that the image is safe.
    pub(crate) end_at_inventory: bool,
    pub(crate) order: Order,
    pub(crate) incoming: Option<Incoming>,
    /// The number of the last file with pages.
    pub(crate) pages_id: u32,
    /// The names of all files that have come over the connection.
    pub(crate) names: HashSet<FileName>,
    /// Whether CRIU has spoken of memory.
    pub(crate) begun: bool,
}

/// Up to so many bytes pages are copied, with the command behind them, and more are spliced: three
/// calls less for each run, which are worth a copy of some pages. Chosen, not measured.
const FEW: u64 = 32 << 10;

/// After the last word CRIU closes its files at once. What it has not written by then, it never
/// will; only a machine that is very busy needs part of this.
const FILES_LIMIT: Duration = Duration::from_secs(60);

impl Capture<'_> {
    /// Takes in the image, and ends the stream.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        self.take_memory()?;
        self.await_reader()?;
        // CRIU goes on, and may let the process go.
        self.wire.answer(&0_i32.to_le_bytes())?;
        self.await_files()?;
        self.around.files.write_to(&mut self.output, &self.names)
    }

    /// Writes all memory into the stream, until CRIU says that it was all.
    fn take_memory(&mut self) -> Result<(), Error> {
        loop {
            let command = self.wire.command(self.around, self.output.endpoint())?;
            self.order.accept(&command).map_err(Error::Order)?;
            if matches!(command, Command::HasParent(_) | Command::Open(_)) {
                self.wire.question();
                self.begin()?;
            }
            match command {
                Command::HasParent(_) => {
                    self.wire.answer(&i32::from(self.parent.is_some()).to_le_bytes())?;
                }
                Command::Open(memory) => {
                    self.end_memory()?;
                    self.open(memory)?;
                    self.wire.answer(&[u8::from(self.parent.is_some())])?;
                }
                Command::Pages(memory, run) => self.pages(memory, run)?,
                Command::Close => {
                    self.end_memory()?;
                    self.output.flush()?;
                    return Ok(());
                }
            }
        }
    }

    /// The first time that CRIU speaks of memory.
    fn begin(&mut self) -> Result<(), Error> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        // Before CRIU is told that it may leave out what has not changed.
        if let Some(parent) = self.parent {
            self.around.files.begin_increment(parent, self.id)?;
        }
        self.around.tell_frozen();
        Ok(())
    }

    fn open(&mut self, memory: Memory) -> Result<(), Error> {
        // Else the files that appear while memory moves would be noted only when it does not.
        self.around.attend_files()?;
        self.pages_id = self.pages_id.saturating_add(1);
        self.incoming = Some(Incoming::begin(memory, self.pages_id, self.wire.layout())?);
        Ok(())
    }

    fn end_memory(&mut self) -> Result<(), Error> {
        match self.incoming.take() {
            Some(incoming) => incoming.end(page_size(), &mut self.output, &mut self.names),
            None => Ok(()),
        }
    }

    fn pages(&mut self, memory: Memory, run: Run) -> Result<(), Error> {
        // `Order` has seen that this is the memory that is open.
        let Some(incoming) = &mut self.incoming else { return Ok(()) };
        incoming.add(run);
        if Incoming::is_left_out(&run) {
            self.wire.no_pages();
            return match self.parent {
                Some(_) => Ok(()),
                None => Err(Error::NoParent(memory)),
            };
        }
        let bytes = run.bytes(page_size());
        if bytes > FEW {
            let before = incoming.few().len();
            let from = self.wire.many_pages(bytes, incoming.few());
            let received = (incoming.few().len() - before) as u64;
            return incoming.splice(from, bytes - received, &mut self.output);
        }
        let output = self.output.endpoint();
        // Not more than `FEW`.
        self.wire.few_pages(bytes as usize, incoming.few(), self.around, output)?;
        if incoming.has_enough() {
            incoming.flush(&mut self.output)?;
        }
        Ok(())
    }

    /// Waits until the reader of the stream has taken all memory. What is on its way is the memory
    /// of the process itself, and not a copy: if CRIU lets the process run on, what it writes then
    /// would get into the image.
    fn await_reader(&mut self) -> Result<(), Error> {
        let output = self.output.endpoint();
        if output.kind() != Kind::Pipe {
            return Ok(());
        }
        let mut pace = Pace::default();
        loop {
            let left = output.untaken().map_err(Error::System)?;
            if left == 0 {
                return Ok(());
            }
            self.around.wait(&[], output, Some(pace.pause(left)))?;
        }
    }

    /// Waits until the small files are complete: for the command's end, or for the files.
    fn await_files(&mut self) -> Result<(), Error> {
        let output = self.output.endpoint();
        let waits_for_child = self.around.child.is_some() && !self.end_at_inventory;
        let mut since = None;
        loop {
            self.around.attend_files()?;
            let has_ended = self.around.child.as_ref().map(Child::has_ended);
            if has_ended == Some(true) || (!waits_for_child && self.around.files.are_complete()) {
                return Ok(());
            }
            if since.is_none() && self.wire.has_hung_up()? {
                since = Some(Instant::now());
            }
            // A command that runs will end.
            let left = since.filter(|_| has_ended.is_none()).map(|since| since.elapsed());
            let limit = left.map(|elapsed| FILES_LIMIT.saturating_sub(elapsed));
            if limit == Some(Duration::ZERO) {
                return Err(Error::DumpFailed);
            }
            let criu = since.is_none().then(|| self.wire.as_fd());
            self.around.wait(criu.as_slice(), output, limit)?;
        }
    }
}
