//! The host that a tree comes from, seen from where it goes.

use super::Arrival;
use crate::cause::Cause;
use crate::family::Role;
use crate::filters::Tap;
use crate::holder::Holder;
use crate::link::relay::{self, Report};
use crate::link::word::{self, Version, Word};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// The other end of a link, and how far it is.
pub(super) struct Peer {
    connections: usize,
    /// The lines to the processes of the other connections, which stay until these are closed.
    _guests: Vec<UnixStream>,
    was_told: bool,
    may_go: bool,
    has_ended: bool,
}

/// The image on its way in: in parts, and what is written into until each part is there.
pub(super) struct Parts {
    pub(super) taps: Vec<Option<Tap>>,
    pub(super) readers: Vec<OwnedFd>,
}

impl Peer {
    /// Starts to take in the image, which comes out in one part for each connection.
    pub(super) fn receive(arrival: Arrival, holder: &mut Holder) -> Result<(Peer, Parts), Cause> {
        let (mut inputs, mut guests) = (vec![arrival.first], Vec::new());
        for guest in arrival.others {
            inputs.push(guest.input);
            guests.push(guest.stream);
        }
        let connections = inputs.len();
        let (mut taps, mut parts) = (Vec::new(), Vec::new());
        for (index, input) in inputs.into_iter().enumerate() {
            let (tap, part) = Tap::new().map_err(Cause::System)?;
            let writer = tap.writer().map_err(Cause::System)?;
            let reports = relay::receive(input, writer, index == 0).map_err(Cause::System)?;
            let index = (connections > 1).then_some(index);
            holder.events.listen(Role::Relay(index), reports).map_err(Cause::System)?;
            taps.push(Some(tap));
            parts.push(part);
        }
        let peer =
            Peer { connections, _guests: guests, was_told: false, may_go: false, has_ended: false };
        Ok((peer, Parts { taps, readers: parts }))
    }

    /// Says that the image may come.
    pub(super) fn say_ready(&mut self) -> Result<(), Cause> {
        self.say(&Word::Ready(Version::ours()))
    }

    /// Says, once, that the tree is there and waits.
    pub(super) fn say_prepared(&mut self) -> Result<(), Cause> {
        match std::mem::replace(&mut self.was_told, true) {
            true => Ok(()),
            false => self.say(&Word::Prepared),
        }
    }

    /// Says how it has ended, once. A link that is lost by then changes nothing.
    pub(super) fn say_end(&mut self, word: &Word) {
        if !std::mem::replace(&mut self.has_ended, true) {
            word::say(word);
        }
    }

    fn say(&self, word: &Word) -> Result<(), Cause> {
        match word::say(word) {
            true => Ok(()),
            false => Err(self.lost(None, "nobody reads what it is told".into())),
        }
    }

    /// Hears what a relay tells; `true` if its part of the image is there.
    pub(super) fn hear(&mut self, index: Option<usize>, line: &str) -> Result<bool, Cause> {
        match Report::parse(line) {
            Some(Report::Through) => return Ok(true),
            Some(Report::Lost(reason)) => return Err(self.lost(index, reason)),
            Some(Report::Said(line)) => match Word::parse(&line) {
                Some(Word::Go) if self.was_told => self.may_go = true,
                _ => return Err(Cause::Said("the other end".into(), line)),
            },
            // Whoever takes the image has failed, and is blamed for that.
            Some(Report::Left) | None => {}
        }
        Ok(false)
    }

    fn lost(&self, index: Option<usize>, reason: String) -> Cause {
        let first = (self.connections > 1).then_some(0);
        Cause::Unlinked(Role::Connection(index.or(first)), reason)
    }

    /// Whether the tree may run.
    pub(super) fn may_go(&self) -> bool {
        self.may_go
    }
}
