//! With `--metadata-first`: the small files go to the first shard, and all else to the others.
//!
//! The markers of each of the two sides are well formed by themselves, as well as those of all
//! shards in the order of their numbers: whoever merges them may take the first shard's before the
//! others', and whoever knows nothing of all this need not.

use crate::error::Error;
use crate::metadata::{Decision, Metadata};
use crate::split::{ASIDE, Split};
use criu_protocol::INVENTORY;
use pipe_io::poll::PollFlags;
use std::time::Instant;
use wire_format::{Body, FileName, Marker};

/// Where a stream is, as far as its markers must follow from one another.
#[derive(Debug, Default)]
pub(crate) struct Sorter {
    metadata: Metadata,
    /// The file that the input's next marker belongs to.
    current: Option<FileName>,
    /// The file that the marker with the last number belongs to, if that is not of the first shard:
    /// only then may the others' next marker go without a name before it.
    named: Option<FileName>,
    /// The last file that the first shard gets, complete: with its end goes that all files have been
    /// named, which is known only at the end of the input. A restore begins with it.
    inventory: Option<(FileName, Vec<u8>)>,
    /// Markers and payload that the first shard gets next.
    batch: Vec<u8>,
}

/// So much of what the first shard gets is collected, in bytes, while there is more to be read.
const BATCH: usize = 64 << 10;

/// The first shard may be behind by so much, in bytes, before all wait for it: it gets little, and
/// a slow one should not stop the others.
const BEHIND_MAX: usize = 64 << 20;

impl Split {
    /// Takes the next marker of the input, and its payload.
    pub(crate) fn sort(&mut self, marker: Marker) -> Result<(), Error> {
        match (marker.body, self.sorter.current.take()) {
            (Body::Filename(name), _) => {
                self.sorter.metadata.begin(&name);
                self.sorter.current = Some(name);
                Ok(())
            }
            (Body::FileData(length), Some(name)) => {
                self.sort_data(&name, length.into())?;
                self.sorter.current = Some(name);
                Ok(())
            }
            (Body::FileEof, Some(name)) => self.sort_end(&name),
            // The end is not taken here, and the input's grammar has refused the others.
            (Body::ImageEof, _) | (Body::FileData(_) | Body::FileEof, None) => Ok(()),
        }
    }

    /// Begins every shard, with the name of the first file: all can say now what they are, however
    /// late they get their first data. The reader of the first one waits for that.
    pub(crate) fn begin_shards(&mut self, first: &Body) -> Result<(), Error> {
        let Body::Filename(name) = first else { return Ok(()) };
        for index in self.first..self.shards.len() {
            let marker = self.number(Body::Filename(name.clone()));
            let mut bytes = Vec::new();
            let Some(shard) = self.shards.get_mut(index) else { continue };
            shard.encode(marker, &mut bytes);
            shard.owe(&bytes)?;
        }
        self.announce(name)?;
        self.let_batch_go()
    }

    fn sort_data(&mut self, name: &FileName, length: u64) -> Result<(), Error> {
        match self.sorter.metadata.decide(name, length) {
            Decision::Hold => self.hold(name, length),
            Decision::Large => self.spread_sorted(name, length),
            Decision::BecomesLarge(held) => {
                self.announce(name)?;
                self.spread_held(name, &held)?;
                self.spread_sorted(name, length)
            }
        }
    }

    fn sort_end(&mut self, name: &FileName) -> Result<(), Error> {
        let Some(bytes) = self.sorter.metadata.end(name) else {
            self.name(name);
            self.push(Body::FileEof);
            self.sorter.named = None;
            return Ok(());
        };
        if name.as_str() == INVENTORY {
            self.sorter.inventory = Some((name.clone(), bytes));
            return Ok(());
        }
        self.batch_end(name, &bytes, false)
    }

    /// Gives the first shard the last file, as the input has ended.
    pub(crate) fn finish_sorting(&mut self) -> Result<(), Error> {
        let Some((name, bytes)) = self.sorter.inventory.take() else { return Ok(()) };
        // CRIU replaces none. Whoever does gets no promise.
        let all_named = !self.sorter.metadata.is_large_replaced();
        self.batch_end(&name, &bytes, all_named)
    }

    /// Gives the first shard the last data of a file, and its end.
    fn batch_end(&mut self, name: &FileName, bytes: &[u8], all_named: bool) -> Result<(), Error> {
        self.batch_data(name, bytes)?;
        let end = Marker { all_named, ..self.number(Body::FileEof) };
        self.collect(end)
    }

    /// Takes payload into memory.
    fn hold(&mut self, name: &FileName, length: u64) -> Result<(), Error> {
        let mut buffer = vec![0; length.min(ASIDE) as usize];
        let mut left = length;
        while left > 0 {
            let read = self.read_some(&mut buffer, left)?;
            left -= read.len() as u64;
            if let Some(bytes) = self.sorter.metadata.hold(name, read) {
                self.batch_data(name, &bytes)?;
            }
        }
        Ok(())
    }

    /// Spreads payload over the shards but the first, which has what came before: its reader need
    /// not wait for it then.
    fn spread_sorted(&mut self, name: &FileName, length: u64) -> Result<(), Error> {
        self.let_batch_go()?;
        self.name(name);
        self.spread(length)
    }

    /// Spreads bytes that were held.
    fn spread_held(&mut self, name: &FileName, bytes: &[u8]) -> Result<(), Error> {
        self.let_batch_go()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.choose(rest.len() as u64)?;
            let length = usize::try_from(room.bytes).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at(length);
            self.name(name);
            self.push(Body::FileData(piece.len() as u32));
            self.write_markers(&room)?;
            if let Some(shard) = self.shards.get_mut(room.shard) {
                shard.write(piece)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Makes the file the current one of the shards but the first, if it isn't.
    fn name(&mut self, name: &FileName) {
        if self.sorter.named.as_ref() != Some(name) {
            self.sorter.named = Some(name.clone());
            self.push(Body::Filename(name.clone()));
        }
    }

    /// Names a file in the first shard. It goes before the file's data: who waits for the name has
    /// it first.
    fn announce(&mut self, name: &FileName) -> Result<(), Error> {
        let marker = self.number(Body::Filename(name.clone()));
        self.collect(marker)
    }

    /// Gives the first shard data of a file.
    fn batch_data(&mut self, name: &FileName, bytes: &[u8]) -> Result<(), Error> {
        self.announce(name)?;
        for piece in bytes.chunks(BATCH) {
            let marker = self.number(Body::FileData(piece.len() as u32));
            self.collect(marker)?;
            self.sorter.batch.extend_from_slice(piece);
        }
        Ok(())
    }

    fn collect(&mut self, marker: Marker) -> Result<(), Error> {
        if self.sorter.batch.len() >= BATCH {
            self.let_batch_go()?;
        }
        self.sorter.named = None;
        if let Some(shard) = self.shards.first_mut() {
            shard.encode(marker, &mut self.sorter.batch);
        }
        Ok(())
    }

    /// Writes what was collected for the first shard.
    pub(crate) fn let_batch_go(&mut self) -> Result<(), Error> {
        if self.sorter.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.sorter.batch);
        let Some(shard) = self.shards.first_mut() else { return Ok(()) };
        shard.write(&batch)?;
        while let Some(shard) = self.shards.first_mut().filter(|shard| shard.debt() > BEHIND_MAX) {
            shard.note_room(false, Instant::now());
            self.wait_for_shards(PollFlags::empty())?;
            self.pay_debts()?;
        }
        if let Some(shard) = self.shards.first_mut() {
            shard.note_room(true, Instant::now());
        }
        Ok(())
    }
}
