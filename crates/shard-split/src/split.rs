//! The split: each chunk, cut to size, goes to a shard that has room now.

use crate::error::Error;
use crate::outputs::Outputs;
use crate::room::{self, Room};
use crate::settle::settle;
use crate::shard::Shard;
use crate::sort::Sorter;
use crate::{Args, NAME};
use cli::{
    Commands, Descriptors, Failure, PayloadError, Place, Progress, ShardEnd, ShardPlan,
    StreamInput, UsageError, new_image_id, new_split_id,
};
use pipe_io::Kind;
use pipe_io::inherit::Direction;
use pipe_io::pipe::{self, Slots, page};
use pipe_io::poll::{self, PollFd, PollFlags};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};
use wire_format::{Body, ImageId, Marker, Shard as ShardPlace, SplitId};

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let Args { metadata_first, shard_fds, outputs, shards, filter, sync, common } = args;
    let plan = ShardPlan::new(&shard_fds, outputs, shards, filter, 1);
    if metadata_first && plan.count() < 2 {
        return Err(UsageError::Options("--metadata-first: needs two shards or more").into());
    }
    let mut descriptors = Descriptors::default();
    let stdin = descriptors.take(&Place::Stdin, Direction::Input)?;
    let mut ends = descriptors.take_shards(plan.fds().iter().copied(), Direction::Output)?;
    let progress = Progress::open(common.progress_fd.0, &mut descriptors)?;

    let begun = plan.begin(NAME, common.verbose);
    let (_, counters) = begun.map_err(|error| Failure::Failed(Error::System(error)))?;
    ends.extend(
        plan.open_outputs(&mut descriptors).map_err(|error| error.into_failure(Error::Shard))?,
    );

    let split = || {
        let mut input = StreamInput::new(Place::Stdin, stdin).or_increment();
        await_stream(&input, &ends)?;
        let (image_id, first) = identify(&mut input)?;
        let split_id = new_split_id().map_err(Error::System)?;
        let mut commands = None;
        if let ShardPlan::Filter { count, command } = &plan {
            let (started, theirs) =
                Commands::start(*count, command, Direction::Output, Some(image_id))?;
            commands = Some(started);
            ends = theirs;
        }
        let (mut outputs, shards) = Outputs::new(ends, commands, &counters)?;
        let split = Split {
            input,
            shards,
            first: usize::from(metadata_first),
            sorter: Sorter::default(),
            pending: Vec::new(),
            next_seq: 0,
            seen: 0,
            favourite: usize::from(metadata_first),
            density: page() as u64,
            skipped: 0,
        };
        split.run(image_id, split_id, first, &mut outputs)?;
        outputs.complete(sync)?;
        progress.finished(&counters);
        Ok(())
    };
    split().map_err(Failure::Failed)
}

/// Waits for the stream to begin. It may take long until there is one, and a shard whose reader
/// goes meanwhile is an error, as it is later.
fn await_stream(input: &StreamInput, ends: &[ShardEnd]) -> Result<(), Error> {
    if !matches!(input.endpoint().kind(), Kind::Pipe | Kind::Socket) {
        return Ok(());
    }
    let mut fds = vec![PollFd::new(input.endpoint().as_fd(), PollFlags::POLLIN)];
    fds.extend(ends.iter().map(|end| PollFd::new(end.endpoint.as_fd(), PollFlags::empty())));
    poll::wait(&mut fds).map_err(Error::System)?;
    let is_gone = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
    match ends.iter().zip(fds.iter().skip(1)).find(|(_, fd)| is_gone(fd)) {
        Some((end, _)) => Err(Error::Shard(end.place.clone(), ErrorKind::BrokenPipe.into())),
        None => Ok(()),
    }
}

/// Takes the first marker, which says what image it is; an image by another program gets an
/// identity here.
fn identify(input: &mut StreamInput) -> Result<(ImageId, Marker), Error> {
    let marker = input.next_marker()?;
    let image_id = match marker.image_id {
        Some(image_id) => image_id,
        None => new_image_id().map_err(Error::System)?,
    };
    Ok((image_id, marker))
}

/// A split that goes on.
pub(crate) struct Split {
    input: StreamInput,
    pub(crate) shards: Vec<Shard>,
    /// The first of the shards that chunks are spread over: one before it is the metadata shard.
    pub(crate) first: usize,
    pub(crate) sorter: Sorter,
    /// Markers without payload that were not written yet: they go where the next chunk goes.
    pending: Vec<Marker>,
    next_seq: u64,
    /// Up to where in the input bytes were seen to be there.
    seen: u64,
    /// The shard that small files go to, one after the other.
    favourite: usize,
    /// How many bytes of payload a page slot takes, by the latest experience: a page, unless
    /// the program before us writes in small pieces.
    density: u64,
    /// How many times in a row the shards were looked at without asking poll.
    skipped: u32,
}

/// How much payload is read at once where it cannot be moved, in bytes.
pub(crate) const ASIDE: u64 = 64 << 10;

impl Split {
    /// Markers are collected up to this number. At 300 bytes each at most they fill 3 slots.
    const PENDING_MAX: usize = 32;
    /// A pipe of so few slots may be too small for a marker and its payload, and tells nothing
    /// about how they came.
    const SMALL_PIPE: Slots = Slots(8);
    /// How long a shard is left that has too little room, at first and in the end.
    const PAUSE_MIN: Duration = Duration::from_micros(100);
    const PAUSE_MAX: Duration = Duration::from_millis(5);

    /// Writes the whole image, of which the first marker was read, and closes the shards. After an
    /// error `outputs` has been asked for its reason before they are closed.
    fn run(
        mut self,
        image_id: ImageId,
        split_id: SplitId,
        first: Marker,
        outputs: &mut Outputs,
    ) -> Result<(), Error> {
        let count = self.shards.len() as u32;
        for (index, shard) in (0..).zip(&mut self.shards) {
            let metadata = index < self.first as u32;
            let split_id = Some(split_id);
            shard.identify(image_id, ShardPlace { index, count, split_id, metadata });
            if let Some(parent_id) = first.parent_id {
                shard.descend_from(parent_id);
            }
        }
        let written =
            self.write_image(first).and_then(|last| settle(&mut self.shards, last, outputs));
        written.map_err(|error| outputs.explain(error))
    }

    /// Writes all of the image but its end, which is returned.
    fn write_image(&mut self, first: Marker) -> Result<Marker, Error> {
        if self.sorts() {
            self.begin_shards(&first.body)?;
        }
        // It may be all that there is.
        let mut marker = first;
        while marker.body != Body::ImageEof {
            self.take(marker)?;
            if self.pending.len() >= Split::PENDING_MAX {
                self.write_pending()?;
            }
            self.await_input()?;
            marker = self.input.next_marker()?;
        }
        self.finish_sorting()?;
        self.let_go()?;
        Ok(self.number(Body::ImageEof))
    }

    /// Whether the first shard is the metadata shard.
    fn sorts(&self) -> bool {
        self.first > 0
    }

    fn take(&mut self, marker: Marker) -> Result<(), Error> {
        if self.sorts() {
            return self.sort(marker);
        }
        match marker.body {
            Body::FileData(length) => self.spread(length.into()),
            body => {
                let marker = Marker { all_named: marker.all_named, ..self.number(body) };
                self.pending.push(marker);
                Ok(())
            }
        }
    }

    /// The next marker of the image.
    pub(crate) fn number(&mut self, body: Body) -> Marker {
        let marker = Marker::new(self.next_seq, body);
        self.next_seq += 1;
        marker
    }

    /// Adds a marker to those that go where the next chunk goes.
    pub(crate) fn push(&mut self, body: Body) {
        let marker = self.number(body);
        self.pending.push(marker);
    }

    /// Writes all that was collected.
    fn let_go(&mut self) -> Result<(), Error> {
        self.let_batch_go()?;
        self.write_pending()
    }

    /// Comes back when the input has a marker, or its end. While there is none, nothing is held
    /// back, and a shard that dies is noticed.
    fn await_input(&mut self) -> Result<(), Error> {
        if !self.input_is_ready()? {
            self.let_go()?;
            self.wait_for_input()?;
        }
        Ok(())
    }

    /// Whether the input can be read without waiting. It is asked again only when what was seen
    /// there has been read: with small files, asking costs as much as reading.
    fn input_is_ready(&mut self) -> Result<bool, Error> {
        let input = self.input.endpoint();
        let can_wait = matches!(input.kind(), Kind::Pipe | Kind::Socket);
        if !can_wait || self.input.position() < self.seen {
            return Ok(true);
        }
        let queued = pipe::queued(input).map_err(Error::System)?;
        self.seen = self.input.position() + queued as u64;
        // None of them: it may have ended.
        Ok(queued > 0 || poll::is_readable(input).map_err(Error::System)?)
    }

    /// Waits for the input, and meanwhile lets the shards pay their debts. No shard keeps us
    /// waiting then, whether it has room or not.
    fn wait_for_input(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        self.shards.iter_mut().for_each(|shard| shard.note_room(true, now));
        while !self.wait()? {
            self.pay_debts()?;
        }
        Ok(())
    }

    /// Waits for the input or for shards in debt; whether it was the input.
    fn wait(&self) -> Result<bool, Error> {
        let mut fds = vec![PollFd::new(self.input.endpoint().as_fd(), PollFlags::POLLIN)];
        fds.extend(self.poll_shards(PollFlags::empty()));
        poll::wait(&mut fds).map_err(Error::System)?;
        self.refuse_broken(fds.get(1..).unwrap_or_default())?;
        Ok(fds.first().and_then(PollFd::any).unwrap_or(false))
    }

    /// Waits for shards: for those in debt until they have room, for the others as `events` says.
    /// The input is not waited for: if it has ended, that would be no waiting at all.
    pub(crate) fn wait_for_shards(&self, events: PollFlags) -> Result<(), Error> {
        let mut fds: Vec<_> = self.poll_shards(events).collect();
        poll::wait(&mut fds).map_err(Error::System)?;
        self.refuse_broken(&fds)
    }

    fn poll_shards(&self, events: PollFlags) -> impl Iterator<Item = PollFd<'_>> {
        self.shards.iter().map(move |shard| {
            let wanted = match shard.is_in_debt() {
                true => PollFlags::POLLOUT,
                // No chunk waits for its room.
                false if shard.index() < self.first => PollFlags::empty(),
                false => events,
            };
            PollFd::new(shard.endpoint.as_fd(), wanted)
        })
    }

    /// A shard whose reader has gone is an error, also while there is nothing to be written.
    fn refuse_broken(&self, polled: &[PollFd<'_>]) -> Result<(), Error> {
        let is_broken = |fd: &PollFd<'_>| {
            fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
        };
        match self.shards.iter().zip(polled).find(|(_, fd)| is_broken(fd)) {
            Some((shard, _)) => Err(shard.failed(ErrorKind::BrokenPipe.into())),
            None => Ok(()),
        }
    }

    pub(crate) fn pay_debts(&mut self) -> Result<(), Error> {
        self.shards.iter_mut().try_for_each(Shard::pay)
    }

    /// Spreads payload over the shards.
    pub(crate) fn spread(&mut self, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let room = self.choose(left)?;
            let piece = left.min(room.bytes);
            // `piece` is not more than the marker's u32 has said.
            self.push(Body::FileData(piece as u32));
            self.write_markers(&room)?;
            self.pour(&room, piece)?;
            left -= piece;
        }
        Ok(())
    }

    /// A shard with plenty of room, as soon as one has enough.
    pub(crate) fn choose(&mut self, wanted: u64) -> Result<Room, Error> {
        let mut pause = Split::PAUSE_MIN;
        loop {
            self.pay_debts()?;
            if let Some(room) = self.room_of_favourite(wanted) {
                return Ok(room);
            }
            if self.may_skip_poll() {
                self.shards.iter_mut().for_each(|shard| shard.note_writable(true));
                if let Some(room) = self.find_room(wanted)? {
                    return Ok(room);
                }
            }
            self.look_for_room(None)?;
            if let Some(room) = self.find_room(wanted)? {
                return Ok(room);
            }
            self.await_room(&mut pause)?;
        }
    }

    fn find_room(&mut self, wanted: u64) -> Result<Option<Room>, Error> {
        let room = room::find(&mut self.shards, self.first, wanted, self.density)?;
        self.favourite = room.as_ref().map_or(self.favourite, |room| room.shard);
        Ok(room)
    }

    /// Whether the shards can be looked at without asking poll first: where no reader would keep us
    /// waiting. Now and then it is asked nevertheless, as it tells of readers that have gone.
    fn may_skip_poll(&mut self) -> bool {
        const SKIPPED: u32 = 7;

        let may_skip = self.skipped < SKIPPED && self.shards.iter().all(Shard::can_be_looked_at);
        self.skipped = if may_skip { self.skipped + 1 } else { 0 };
        may_skip
    }

    /// Comes back when some shard may have more room.
    fn await_room(&mut self, pause: &mut Duration) -> Result<(), Error> {
        let now = Instant::now();
        let (left_alone, others): (Vec<_>, Vec<_>) = self
            .shards
            .iter()
            .skip(self.first)
            .filter(|shard| !shard.is_full() && !shard.is_in_debt())
            .partition(|shard| shard.left_alone(now).is_some());
        // A pipe can be polled only for its first free slot. One that has some, but too few to be
        // worth a chunk, is looked at again after a while; ever less often, so that waiting for
        // slow readers costs little.
        if !others.is_empty() {
            thread::sleep(*pause);
            *pause = (*pause * 2).min(Split::PAUSE_MAX);
            return Ok(());
        }
        let least = left_alone.iter().filter_map(|shard| shard.left_alone(now)).min();
        match least {
            Some(left) => self.look_for_room(Some(left)),
            None => self.wait_for_shards(PollFlags::POLLOUT),
        }
    }

    /// Sees which shards have a free slot. With a limit, waits no longer than that until another
    /// one has.
    fn look_for_room(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        let full = |shard: &Shard| limit.is_none() || shard.is_full() || shard.is_in_debt();
        let wanted = |shard: &Shard| match full(shard) {
            true => PollFlags::POLLOUT,
            false => PollFlags::empty(),
        };
        let mut fds: Vec<_> = self
            .shards
            .iter()
            .map(|shard| PollFd::new(shard.endpoint.as_fd(), wanted(shard)))
            .collect();
        let polled = poll::wait_for(&mut fds, limit.unwrap_or_default());
        polled.map_err(Error::System)?;
        self.refuse_broken(&fds)?;
        let are_writable: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (shard, is_writable) in self.shards.iter_mut().zip(are_writable) {
            if limit.is_none() || shard.is_full() {
                shard.note_writable(is_writable);
            }
        }
        Ok(())
    }

    /// The room that the shard chosen last is known to have, if that is enough for a small chunk.
    ///
    /// To look at every shard before every small file would cost more than the file. With 20,000
    /// of them this, and the like for the input, halves the CPU time of capture and split
    /// (`make bench`, capture-small).
    fn room_of_favourite(&self, wanted: u64) -> Option<Room> {
        /// A larger chunk is worth the look.
        const SMALL: u64 = 64 << 10;

        let shard = self.shards.get(self.favourite).filter(|_| wanted <= SMALL)?;
        room::known(self.favourite, shard, wanted, self.density)
    }

    /// Writes the collected markers to the shard that was chosen.
    pub(crate) fn write_markers(&mut self, room: &Room) -> Result<(), Error> {
        let Some(shard) = self.shards.get_mut(room.shard) else { return Ok(()) };
        let mut bytes = Vec::new();
        for marker in self.pending.drain(..) {
            shard.encode(marker, &mut bytes);
        }
        shard.write(&bytes)
    }

    /// Writes the collected markers where there is room.
    fn write_pending(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let room = self.choose(1)?;
        self.write_markers(&room)
    }

    /// Moves payload to the shard that was seen to have room for it.
    fn pour(&mut self, room: &Room, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            // A splice from a socket waits for the peer, whatever its flags say.
            if self.input.endpoint().kind() == Kind::Socket && !self.input_is_ready()? {
                self.wait_for_input()?;
            }
            let Some(shard) = self.shards.get(room.shard) else { return Ok(()) };
            let moved = match shard.is_in_debt() {
                true => Ok(None),
                false => self.input.move_payload_now(&shard.endpoint, left),
            };
            match moved {
                Ok(Some(moved)) => left -= moved,
                Ok(None) => {
                    let is_writable = poll::is_writable(&shard.endpoint);
                    if shard.is_in_debt() || !is_writable.map_err(|error| shard.failed(error))? {
                        return self.pour_aside(room, length - left, left);
                    }
                    self.wait_for_input()?;
                }
                Err(PayloadError::Input(error)) => return Err(Error::Input(error)),
                Err(PayloadError::Output(error)) => return Err(shard.failed(error)),
            }
        }
        if let Some(shard) = self.shards.get_mut(room.shard) {
            shard.gave(length, Slots(length.div_ceil(self.density) + 1));
            shard.leave(length);
        }
        self.density = (self.density * 2).min(page() as u64);
        Ok(())
    }

    /// Takes into memory what did not fit into the shard: the payload came in smaller pieces
    /// than pages. It is promised to this shard, and must not hold up the others.
    fn pour_aside(&mut self, room: &Room, moved: u64, left: u64) -> Result<(), Error> {
        if let Some(shard) = self.shards.get_mut(room.shard) {
            shard.gave(moved, room.slots);
        }
        if room.slots > Split::SMALL_PIPE {
            self.density = (moved / room.slots.0).clamp(1, page() as u64);
        }
        let mut buffer = vec![0; left.min(ASIDE) as usize];
        let mut left = left;
        while left > 0 {
            let read = self.read_some(&mut buffer, left)?;
            left -= read.len() as u64;
            let Some(shard) = self.shards.get_mut(room.shard) else { return Ok(()) };
            shard.owe(read)?;
        }
        Ok(())
    }

    /// Reads some of the `left` bytes of payload, and meanwhile lets the shards pay their debts.
    pub(crate) fn read_some<'a>(
        &mut self,
        buffer: &'a mut [u8],
        left: u64,
    ) -> Result<&'a [u8], Error> {
        if !self.input_is_ready()? {
            self.let_batch_go()?;
            self.wait_for_input()?;
        }
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (window, _) = buffer.split_at_mut(length);
        let read = self.input.read_some(window)?;
        Ok(window.get(..read).unwrap_or_default())
    }
}
