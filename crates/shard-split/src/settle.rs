//! The end: each shard gets what was promised to it, and is closed when its reader has it all.

use crate::error::Error;
use crate::outputs::Outputs;
use crate::shard::Shard;
use pipe_io::Pace;
use pipe_io::poll::{self, PollFd, PollFlags};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use wire_format::Marker;

/// Closes the shards, each as soon as it can be: whoever merges them may have to see the end of one
/// before it reads more of another. `last`, the end of the image, goes into the one that comes last,
/// when the readers have all the rest: so shards of which one was not read to its end never look
/// like an image. After an error they are still open.
pub(crate) fn settle(
    shards: &mut Vec<Shard>,
    last: Marker,
    outputs: &mut Outputs,
) -> Result<(), Error> {
    let mut pace = Pace::default();
    let mut last = Some(last);
    loop {
        let lefts = shards.iter_mut().map(|shard| left(shard, outputs));
        let lefts = lefts.collect::<Result<Vec<_>, _>>()?;
        if lefts.iter().all(Option::is_none) {
            if let Some(last) = last.take() {
                write_last(shards, last)?;
                continue;
            }
        }
        close_taken(shards, &lefts, outputs);
        if shards.is_empty() {
            return Ok(());
        }
        let left: usize = lefts.into_iter().flatten().sum();
        let pause = (left > 0).then(|| pace.pause(left));
        let broken = wait(shards, outputs, pause)?;
        let ended = outputs.ended()?;
        for (shard, is_broken) in shards.iter().zip(broken) {
            // A shard whose command has ended is not waited for, whatever that has left running.
            if is_broken || ended.contains(&shard.index()) {
                refuse_unread(shard, outputs)?;
            }
        }
    }
}

/// Writes the end of the image to the shard that has got most.
fn write_last(shards: &mut [Shard], last: Marker) -> Result<(), Error> {
    let Some(shard) = shards.iter_mut().max_by_key(|shard| shard.given()) else { return Ok(()) };
    let mut bytes = Vec::new();
    shard.encode(last, &mut bytes);
    shard.owe(&bytes)
}

/// Closes the shards that have nothing left.
fn close_taken(shards: &mut Vec<Shard>, lefts: &[Option<usize>], outputs: &mut Outputs) {
    let now = Instant::now();
    let all = std::mem::take(shards);
    for (mut shard, left) in all.into_iter().zip(lefts) {
        shard.note_room(left.is_none(), now);
        match left {
            Some(_) => shards.push(shard),
            None => outputs.close(shard),
        }
    }
}

/// How many bytes are left in the pipe of a shard that is to be closed when it is empty; `None` for
/// one that can be closed now.
fn left(shard: &mut Shard, outputs: &Outputs) -> Result<Option<usize>, Error> {
    shard.pay()?;
    if shard.is_in_debt() {
        return Ok(Some(0));
    }
    if outputs.is_relayed(shard.index()) {
        return Ok(None);
    }
    shard.untaken().map(|left| (left > 0).then_some(left))
}

/// Waits until something can have changed. Tells of each shard whether nobody can read it any more.
fn wait(shards: &[Shard], outputs: &Outputs, pause: Option<Duration>) -> Result<Vec<bool>, Error> {
    let of_shard = |shard: &Shard| match shard.is_in_debt() {
        true => PollFlags::POLLOUT,
        false => PollFlags::empty(),
    };
    let mut fds: Vec<_> =
        shards.iter().map(|shard| PollFd::new(shard.endpoint.as_fd(), of_shard(shard))).collect();
    fds.extend(outputs.exits().map(|exit| PollFd::new(exit, PollFlags::POLLIN)));
    let waited = match pause {
        Some(pause) => poll::wait_for(&mut fds, pause).map(drop),
        None => poll::wait(&mut fds),
    };
    waited.map_err(Error::System)?;
    let is_broken =
        |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
    Ok(fds.iter().take(shards.len()).map(is_broken).collect())
}

/// A reader that has gone, or its command, may have taken all before.
fn refuse_unread(shard: &Shard, outputs: &mut Outputs) -> Result<(), Error> {
    match shard.untaken()? + shard.debt() {
        0 => Ok(()),
        left => Err(outputs.refuse_unread(shard, left)),
    }
}
