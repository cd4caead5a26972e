//! One output.

use crate::debt::Debt;
use crate::error::Error;
use crate::ledger::Ledger;
use cli::{Counters, Place};
use pipe_io::pipe::{self, Slots, page};
use pipe_io::{Endpoint, Rest, poll};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire_format::{ImageId, Marker, Shard as ShardPlace};

/// A shard that is being written.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) place: Place,
    /// A pipe: the shard itself, or what leads to it.
    pub(crate) endpoint: Endpoint,
    /// What its first marker will say.
    identity: Option<(ImageId, ShardPlace)>,
    /// The image that this one is an increment of, for the first marker too.
    parent_id: Option<ImageId>,
    index: usize,
    counters: Arc<Counters>,
    /// Bytes that were given to it.
    given: u64,
    ledger: Ledger,
    /// How many page slots were free when they were looked at, less what was put in since.
    free_at_least: Slots,
    /// Page slots of its pipe.
    slots: Slots,
    debt: Debt,
    rest: Rest,
    /// When it was given something the last time.
    given_at: Option<Instant>,
    /// Whether poll has found no slot free, the last time.
    full: bool,
    /// Since when it has had no room, while there was something to be written.
    blocked: Option<Instant>,
}

impl Shard {
    /// The shard of this index, counted from 0, that is written through this pipe.
    pub(crate) fn new(
        index: usize,
        place: Place,
        endpoint: Endpoint,
        counters: Arc<Counters>,
    ) -> Result<Shard, Error> {
        let slots = match Slots::of(&endpoint) {
            Ok(slots) => slots,
            Err(error) => return Err(Error::Shard(place, error)),
        };
        Ok(Shard {
            place,
            endpoint,
            identity: None,
            parent_id: None,
            index,
            counters,
            given: 0,
            ledger: Ledger::default(),
            free_at_least: Slots::default(),
            slots,
            debt: Debt::default(),
            rest: Rest::of_one_of_many(),
            given_at: None,
            full: false,
            blocked: None,
        })
    }

    /// Its place among the shards, counted from 0.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Tells the shard what it is; its first marker will say so.
    pub(crate) fn identify(&mut self, image_id: ImageId, place: ShardPlace) {
        self.identity = Some((image_id, place));
    }

    /// Tells the shard what image it is a part of an increment of.
    pub(crate) fn descend_from(&mut self, parent_id: ImageId) {
        self.parent_id = Some(parent_id);
    }

    /// How many page slots are free now.
    pub(crate) fn free(&mut self) -> Result<Slots, Error> {
        let queued = self.rest.meet(|| pipe::queued(&self.endpoint), |_| Duration::ZERO);
        let queued = queued.map_err(|error| self.failed(error))?;
        self.free_at_least = self.slots.saturating_sub(self.ledger.taken(queued as u64));
        Ok(self.free_at_least)
    }

    /// How many bytes its reader has not taken yet, of those that were written.
    pub(crate) fn untaken(&self) -> Result<usize, Error> {
        self.endpoint.untaken().map_err(|error| self.failed(error))
    }

    /// Notes whether poll has found a slot free. In a pipe that had none, that is when its reader
    /// begins to copy.
    pub(crate) fn note_writable(&mut self, is_writable: bool) {
        if is_writable && self.full {
            self.rest.begin(self.slots.bytes(page() as u64));
        }
        self.full = !is_writable;
    }

    /// Whether its reader does not hold the pipe's mutex for long, by what is known.
    pub(crate) fn can_be_looked_at(&self) -> bool {
        self.rest.is_needless()
    }

    /// Whether poll has found no slot free, the last time.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Leaves the pipe to its reader, which has so many more bytes to copy.
    pub(crate) fn leave(&mut self, bytes: u64) {
        self.rest.begin(bytes);
    }

    /// When it was given something the last time.
    pub(crate) fn given_at(&self) -> Option<Instant> {
        self.given_at
    }

    /// How long the pipe is still left to its reader, and not to be looked at.
    pub(crate) fn left_alone(&self, now: Instant) -> Option<Duration> {
        self.rest.left(now)
    }

    /// How many page slots are free at least, without looking.
    pub(crate) fn free_at_least(&self) -> Slots {
        self.free_at_least
    }

    /// How many page slots there are in all.
    pub(crate) fn slots(&self) -> Slots {
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
            marker.parent_id = self.parent_id.take();
        }
        marker.encode(out);
    }

    /// Writes bytes as far as there is room, and owes the rest. It does not rely on what the ledger
    /// says, which is a guess where pages came half empty: a shard must not keep the others waiting.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > page() || self.is_in_debt() || !self.is_writable()? {
            return self.owe(bytes);
        }
        (&self.endpoint).write_all(bytes).map_err(|error| self.failed(error))?;
        self.gave(bytes.len() as u64, Slots(1));
        Ok(())
    }

    fn is_writable(&self) -> Result<bool, Error> {
        poll::is_writable(&self.endpoint).map_err(|error| self.failed(error))
    }

    /// Takes bytes into memory, as far as there is no room for them.
    pub(crate) fn owe(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.debt.owe(bytes);
        self.pay()
    }

    /// Notes that bytes were put into it, in at most that many slots.
    pub(crate) fn gave(&mut self, bytes: u64, slots: Slots) {
        self.given += bytes;
        self.given_at = Some(Instant::now());
        self.counters.add(self.index, bytes);
        self.ledger.put(bytes, slots);
        self.free_at_least = self.free_at_least.saturating_sub(slots);
    }

    /// Whether something is still to be written. Such a shard takes nothing else.
    pub(crate) fn is_in_debt(&self) -> bool {
        !self.debt.is_paid()
    }

    /// How many bytes are still to be written.
    pub(crate) fn debt(&self) -> usize {
        self.debt.bytes()
    }

    /// Writes as much of the debt as there is room for now.
    pub(crate) fn pay(&mut self) -> Result<(), Error> {
        while self.is_in_debt() && self.is_writable()? {
            let written =
                (&self.endpoint).write(self.debt.page()).map_err(|error| self.failed(error))?;
            self.debt.pay(written);
            self.gave(written as u64, Slots(1));
        }
        Ok(())
    }

    /// Notes whether it has room for what is to be written at this moment.
    pub(crate) fn note_room(&mut self, has_room: bool, now: Instant) {
        match (has_room, self.blocked) {
            (true, Some(since)) => {
                self.counters.blocked(self.index, now.saturating_duration_since(since));
                self.blocked = None;
            }
            (false, None) => self.blocked = Some(now),
            _ => {}
        }
    }

    /// The error that writing this shard has met.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        Error::Shard(self.place.clone(), error)
    }
}
