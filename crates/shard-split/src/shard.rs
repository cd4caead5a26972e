//! One output.

use crate::error::Error;
use crate::ledger::Ledger;
use cli::{Counters, Place};
use pipe_io::pipe::{self, PAGE};
use pipe_io::{Endpoint, Kind, poll};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use wire_format::{ImageId, Marker, Shard as ShardPlace};

/// A shard that is being written.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) place: Place,
    pub(crate) endpoint: Endpoint,
    /// What its first marker will say.
    identity: Option<(ImageId, ShardPlace)>,
    index: usize,
    counters: Arc<Counters>,
    /// Bytes that were given to it.
    given: u64,
    ledger: Ledger,
    /// Page slots of its pipe.
    slots: u64,
    /// Payload that was announced to it and did not fit after all.
    debt: VecDeque<u8>,
}

impl Shard {
    /// The shard of this index, counted from 0.
    pub(crate) fn new(
        index: usize,
        place: Place,
        endpoint: Endpoint,
        counters: Arc<Counters>,
    ) -> Result<Shard, Error> {
        let slots = match endpoint.kind() {
            Kind::Pipe => pipe::capacity(&endpoint)
                .map_err(|error| Error::Shard(place.clone(), error))?
                .div_ceil(PAGE) as u64,
            // There is no end to them: the kernel makes us wait, or takes it all.
            Kind::File | Kind::Socket | Kind::Device => u64::MAX,
        };
        Ok(Shard {
            place,
            endpoint,
            identity: None,
            index,
            counters,
            given: 0,
            ledger: Ledger::default(),
            slots,
            debt: VecDeque::new(),
        })
    }

    /// Tells the shard what it is; its first marker will say so.
    pub(crate) fn identify(&mut self, image_id: ImageId, place: ShardPlace) {
        self.identity = Some((image_id, place));
    }

    /// How many page slots are free now.
    pub(crate) fn free(&mut self) -> Result<u64, Error> {
        if self.endpoint.kind() != Kind::Pipe {
            return Ok(self.slots);
        }
        let queued = pipe::queued(&self.endpoint).map_err(|error| self.failed(error))?;
        Ok(self.slots.saturating_sub(self.ledger.taken(queued as u64)))
    }

    /// How many page slots there are in all.
    pub(crate) fn slots(&self) -> u64 {
        self.slots
    }

    /// How many bytes were given to it.
    pub(crate) fn given(&self) -> u64 {
        self.given
    }

    /// Appends a marker to `out`, and the identity of the shard to the first one.
    pub(crate) fn encode(&mut self, mut marker: Marker, out: &mut Vec<u8>) {
        if let Some((image_id, place)) = self.identity.take() {
            marker.image_id = Some(image_id);
            marker.shard = Some(place);
        }
        marker.encode(out);
    }

    /// Writes markers, for which there must be room.
    pub(crate) fn write_markers(&mut self, bytes: &[u8]) -> Result<(), Error> {
        (&self.endpoint).write_all(bytes).map_err(|error| self.failed(error))?;
        self.gave(bytes.len() as u64, (bytes.len().div_ceil(PAGE)) as u64);
        Ok(())
    }

    /// Notes that bytes were put into it, in at most that many slots.
    pub(crate) fn gave(&mut self, bytes: u64, slots: u64) {
        self.given += bytes;
        self.counters.add(self.index, bytes);
        if self.endpoint.kind() == Kind::Pipe {
            self.ledger.put(bytes, slots);
        }
    }

    /// Whether announced payload is still to be written. Such a shard takes nothing else.
    pub(crate) fn is_in_debt(&self) -> bool {
        !self.debt.is_empty()
    }

    /// Keeps announced payload that the shard has no room for now.
    pub(crate) fn owe(&mut self, payload: Vec<u8>) {
        self.debt = payload.into();
    }

    /// Writes as much of the debt as there is room for now.
    pub(crate) fn pay(&mut self) -> Result<(), Error> {
        while self.is_in_debt()
            && poll::is_writable(&self.endpoint).map_err(|error| self.failed(error))?
        {
            // One page never blocks where there is a slot.
            let (front, _) = self.debt.as_slices();
            let page = front.get(..PAGE.min(front.len())).unwrap_or_default();
            let written = (&self.endpoint).write(page).map_err(|error| self.failed(error))?;
            self.debt.drain(..written);
            self.gave(written as u64, 1);
        }
        Ok(())
    }

    /// The error that writing this shard has met.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        Error::Shard(self.place.clone(), error)
    }

    /// Completes the shard.
    pub(crate) fn close(self) -> Result<(), Error> {
        let Shard { place, endpoint, index, counters, .. } = self;
        endpoint.close().map_err(|error| Error::Shard(place, error))?;
        counters.end(index);
        Ok(())
    }
}
