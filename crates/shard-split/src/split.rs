//! The split: each chunk, cut to size, goes to the shard with the most room now.

use crate::error::Error;
use crate::shard::Shard;
use crate::{Args, NAME};
use cli::{
    Counters, Descriptors, Failure, PayloadError, Place, Program, Progress, StreamInput,
    new_image_id,
};
use pipe_io::Kind;
use pipe_io::inherit::Direction;
use pipe_io::pipe::{self, PAGE};
use pipe_io::poll::{self, PollFd, PollFlags};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use wire_format::{Body, Marker, Shard as ShardPlace};

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    let stdin = descriptors.take(&Place::Stdin, Direction::Input)?;
    let fds = args.shard_fds.iter().map(|fd| fd.0);
    let shards = descriptors.take_shards(fds, Direction::Output)?;
    let mut progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;

    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(shards.len()));
    let split = || {
        program.attend_signals(&counters).map_err(Error::System)?;
        let shards = shards
            .into_iter()
            .enumerate()
            .map(|(index, (place, endpoint))| {
                Shard::new(index, place, endpoint, Arc::clone(&counters))
            })
            .collect::<Result<_, _>>()?;
        let split = Split {
            input: StreamInput::new(Place::Stdin, stdin),
            shards,
            pending: Vec::new(),
            next_seq: 0,
            density: PAGE as u64,
        };
        split.run()?;
        progress.finished(&counters);
        Ok(())
    };
    split().map_err(Failure::Failed)
}

/// A split that goes on.
struct Split {
    input: StreamInput,
    shards: Vec<Shard>,
    /// Markers without payload that were not written yet: they go where the next chunk goes.
    pending: Vec<Body>,
    next_seq: u64,
    /// How many bytes of payload a page slot takes, by the latest experience: a page, unless
    /// the program before us writes in small pieces.
    density: u64,
}

/// A shard, and what it can take now.
struct Room {
    /// Which of the shards it is.
    shard: usize,
    /// Page slots.
    slots: u64,
    /// Bytes of payload that fit into them.
    bytes: u64,
}

impl Split {
    /// Markers are collected up to this number. At 300 bytes each at most they fill 3 slots.
    const PENDING_MAX: usize = 32;
    /// A pipe of so few slots may be too small for a marker and its payload, and tells nothing
    /// about how they came.
    const SMALL_PIPE: u64 = 8;
    /// Slots that the collected markers and the next one take at most.
    const MARKER_SLOTS: u64 = 3;

    fn run(mut self) -> Result<(), Error> {
        self.begin()?;
        loop {
            self.await_input()?;
            let marker = self.input.next_marker()?;
            match marker.body {
                Body::FileData(length) => self.spread(length.into())?,
                Body::ImageEof => break,
                body => self.pending.push(body),
            }
            if self.pending.len() >= Split::PENDING_MAX {
                self.write_pending()?;
            }
        }
        self.pending.push(Body::ImageEof);
        self.write_pending()?;
        self.finish()
    }

    /// Takes the first marker, which says what image it is; an image by another program gets an
    /// identity here.
    fn begin(&mut self) -> Result<(), Error> {
        self.await_input()?;
        let marker = self.input.next_marker()?;
        let image_id = match marker.image_id {
            Some(image_id) => image_id,
            None => new_image_id().map_err(Error::System)?,
        };
        let count = self.shards.len() as u32;
        for (index, shard) in (0..).zip(&mut self.shards) {
            shard.identify(image_id, ShardPlace { index, count });
        }
        self.pending.push(marker.body);
        Ok(())
    }

    /// Comes back when the input has a marker, or its end. While there is none, nothing is held
    /// back, and a shard that dies is noticed.
    fn await_input(&mut self) -> Result<(), Error> {
        let input = self.input.endpoint();
        let can_wait = matches!(input.kind(), Kind::Pipe | Kind::Socket);
        if !can_wait || pipe::queued(input).map_err(Error::System)? > 0 {
            return Ok(());
        }
        self.write_pending()?;
        self.wait_for_input()
    }

    /// Waits for the input, and meanwhile lets the shards pay their debts.
    fn wait_for_input(&mut self) -> Result<(), Error> {
        while !self.wait(PollFlags::POLLIN, PollFlags::empty())? {
            self.pay_debts()?;
        }
        Ok(())
    }

    /// Waits for the input, for shards in debt, and for the other shards as `shards` says.
    /// Returns whether the input is ready. A shard whose reader has gone is an error.
    fn wait(&mut self, input: PollFlags, shards: PollFlags) -> Result<bool, Error> {
        let mut fds = vec![PollFd::new(self.input.endpoint().as_fd(), input)];
        fds.extend(self.shards.iter().map(|shard| {
            let wanted = if shard.is_in_debt() { PollFlags::POLLOUT } else { shards };
            PollFd::new(shard.endpoint.as_fd(), wanted)
        }));
        poll::wait(&mut fds).map_err(Error::System)?;

        let mut events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let input_ready = events.next().is_some_and(|events| !events.is_empty());
        for (shard, events) in self.shards.iter().zip(events) {
            if events.contains(PollFlags::POLLERR) {
                return Err(shard.failed(ErrorKind::BrokenPipe.into()));
            }
        }
        Ok(input_ready)
    }

    fn pay_debts(&mut self) -> Result<(), Error> {
        self.shards.iter_mut().try_for_each(Shard::pay)
    }

    /// Spreads payload over the shards.
    fn spread(&mut self, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let room = self.choose(left)?;
            let piece = left.min(room.bytes);
            // `piece` is not more than the marker's u32 has said.
            self.pending.push(Body::FileData(piece as u32));
            self.write_markers(room.shard)?;
            self.pour(&room, piece)?;
            left -= piece;
        }
        Ok(())
    }

    /// The shard with the most room, as soon as one has enough.
    fn choose(&mut self, wanted: u64) -> Result<Room, Error> {
        const PAUSE_MIN: Duration = Duration::from_micros(50);
        const PAUSE_MAX: Duration = Duration::from_millis(5);

        let mut pause = PAUSE_MIN;
        loop {
            self.pay_debts()?;
            if let Some(room) = self.best(wanted)? {
                return Ok(room);
            }
            // A pipe can be polled only for its first free slot. One that has some, but too few
            // to be worth a chunk, is looked at again after a while; ever less often, so that
            // waiting for slow readers costs little.
            if self.is_any_writable()? {
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                self.wait(PollFlags::empty(), PollFlags::POLLOUT)?;
            }
        }
    }

    /// Whether a page could be written to a shard that is not in debt. One whose reader has gone
    /// is an error: it polls as writable for ever, and its pipe may be full for ever.
    fn is_any_writable(&self) -> Result<bool, Error> {
        let free: Vec<_> = self.shards.iter().filter(|shard| !shard.is_in_debt()).collect();
        let mut fds: Vec<_> =
            free.iter().map(|s| PollFd::new(s.endpoint.as_fd(), PollFlags::POLLOUT)).collect();
        let is_any = poll::look(&mut fds).map_err(Error::System)?;
        let gone = |fd: &PollFd| fd.revents().is_some_and(|it| it.contains(PollFlags::POLLERR));
        match free.iter().zip(&fds).find(|(_, fd)| gone(fd)) {
            Some((shard, _)) => Err(shard.failed(ErrorKind::BrokenPipe.into())),
            None => Ok(is_any),
        }
    }

    /// The shard with the most room, if one has enough for `wanted` bytes or a quarter of its
    /// pipe. Among equals, the one that was given the least.
    fn best(&mut self, wanted: u64) -> Result<Option<Room>, Error> {
        let mut best: Option<(Room, u64)> = None;
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if shard.is_in_debt() {
                continue;
            }
            let free = shard.free()?;
            // An empty pipe is used however small it is.
            let at_least = u64::from(free == shard.slots());
            let slots = free.saturating_sub(Split::MARKER_SLOTS + 1).max(at_least);
            let bytes = slots.saturating_mul(self.density);
            if bytes == 0 || (bytes < wanted && slots < shard.slots() / 4) {
                continue;
            }
            let given = shard.given();
            let is_better = best.as_ref().is_none_or(|(best, most)| {
                bytes > best.bytes || (bytes == best.bytes && given < *most)
            });
            if is_better {
                best = Some((Room { shard: index, slots, bytes }, given));
            }
        }
        Ok(best.map(|(room, _)| room))
    }

    /// Writes the collected markers to the shard that was chosen.
    fn write_markers(&mut self, shard: usize) -> Result<(), Error> {
        let shard = &mut self.shards[shard];
        let mut bytes = Vec::new();
        for body in self.pending.drain(..) {
            shard.encode(Marker::new(self.next_seq, body), &mut bytes);
            self.next_seq += 1;
        }
        shard.write_markers(&bytes)
    }

    /// Writes the collected markers where there is room.
    fn write_pending(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let room = self.choose(1)?;
        self.write_markers(room.shard)
    }

    /// Moves payload to the shard that was seen to have room for it.
    fn pour(&mut self, room: &Room, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let shard = &self.shards[room.shard];
            let moved = match shard.endpoint.kind() {
                Kind::Pipe => self.input.move_payload_now(&shard.endpoint, left),
                _ => self.input.move_payload(&shard.endpoint, left).map(Some),
            };
            match moved {
                Ok(Some(moved)) => left -= moved,
                Ok(None) => {
                    if !poll::is_writable(&shard.endpoint).map_err(|e| shard.failed(e))? {
                        return self.pour_aside(room, length - left, left);
                    }
                    self.wait_for_input()?;
                }
                Err(PayloadError::Input(error)) => return Err(Error::Input(error)),
                Err(PayloadError::Output(error)) => return Err(shard.failed(error)),
            }
        }
        self.shards[room.shard].gave(length, length.div_ceil(self.density) + 1);
        self.density = (self.density * 2).min(PAGE as u64);
        Ok(())
    }

    /// Takes into memory what did not fit into the shard: the payload came in smaller pieces
    /// than pages. It is promised to this shard, and must not hold up the others.
    fn pour_aside(&mut self, room: &Room, moved: u64, left: u64) -> Result<(), Error> {
        let shard = &mut self.shards[room.shard];
        shard.gave(moved, room.slots);
        if room.slots > Split::SMALL_PIPE {
            self.density = (moved / room.slots).clamp(1, PAGE as u64);
        }
        let mut payload = vec![0; left as usize];
        self.input.read_payload(&mut payload)?;
        shard.owe(payload);
        Ok(())
    }

    /// Completes the shards.
    fn finish(mut self) -> Result<(), Error> {
        while self.shards.iter().any(Shard::is_in_debt) {
            self.wait(PollFlags::empty(), PollFlags::empty())?;
            self.pay_debts()?;
        }
        self.shards.into_iter().try_for_each(Shard::close)
    }
}
