//! Memory, from the connection into the stream.

use crate::error::Error;
use cli::{SourceError, StreamOutput};
use criu_protocol::page_server::{Layout, Memory, Origin, Run};
use criu_protocol::{Pagemap, pages_file};
use pipe_io::Endpoint;
use std::collections::HashSet;
use wire_format::FileName;

/// The memory whose pages are coming.
#[derive(Debug)]
pub(crate) struct Incoming {
    memory: Memory,
    pagemap: Pagemap,
    /// The file of the pages.
    pages: FileName,
    /// Pages that were received, and are not in the stream yet.
    few: Vec<u8>,
}

/// So many bytes of pages, that came a few at a time, go into the stream together: less than the
/// processor's cache has, and so many that their marker is nothing beside them. Chosen, not
/// measured.
const TOGETHER: usize = 256 << 10;

/// What one marker announces at most, in bytes.
const PIECE: u64 = 1 << 30;

impl Incoming {
    /// Begins with memory, of which the pages are in the file of this number.
    pub(crate) fn begin(memory: Memory, pages_id: u32, layout: Layout) -> Result<Incoming, Error> {
        let pages = pages_file(pages_id)?;
        let pagemap = Pagemap { pages_id, runs: Vec::new(), layout };
        Ok(Incoming { memory, pagemap, pages, few: Vec::new() })
    }

    /// Notes a run of pages.
    pub(crate) fn add(&mut self, run: Run) {
        self.pagemap.runs.push(run);
    }

    /// Where a few pages go.
    pub(crate) fn few(&mut self) -> &mut Vec<u8> {
        &mut self.few
    }

    /// Whether those are many by now.
    pub(crate) fn has_enough(&self) -> bool {
        self.few.len() >= TOGETHER
    }

    /// Puts the few pages that were received into the stream.
    pub(crate) fn flush(&mut self, output: &mut StreamOutput) -> Result<(), Error> {
        if !self.few.is_empty() {
            output.bytes(&self.pages, &self.few)?;
            self.few.clear();
        }
        Ok(())
    }

    /// Moves so many bytes of pages into the stream.
    pub(crate) fn splice(
        &mut self,
        from: &Endpoint,
        bytes: u64,
        output: &mut StreamOutput,
    ) -> Result<(), Error> {
        self.flush(output)?;
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(PIECE);
            output.data(&self.pages, piece as u32)?;
            output.payload(from, piece as u32).map_err(|error| match error {
                SourceError::Output(error) => Error::Output(error),
                SourceError::Source(_, Some(error)) => crate::wire::hung_up(error),
                SourceError::Source(_, None) => Error::HungUp,
            })?;
            left -= piece;
        }
        Ok(())
    }

    /// Ends the file of the pages, and writes the one that says where they are. Notes the names of
    /// both.
    pub(crate) fn end(
        mut self,
        page_size: u64,
        output: &mut StreamOutput,
        names: &mut HashSet<FileName>,
    ) -> Result<(), Error> {
        self.pagemap.check(page_size).map_err(|error| Error::Pages(self.memory, error))?;
        self.flush(output)?;
        output.file(&self.pages)?;
        output.file_eof(&self.pages)?;
        let name = self.memory.pagemap()?;
        output.bytes(&name, &self.pagemap.encode())?;
        output.file_eof(&name)?;
        names.extend([name, self.pages]);
        Ok(())
    }

    /// Whether a run has its pages elsewhere.
    pub(crate) fn is_left_out(run: &Run) -> bool {
        run.origin == Origin::Parent
    }
}
