//! Which shard takes the next chunk.

use crate::error::Error;
use crate::shard::Shard;
use pipe_io::pipe::Slots;
use std::time::Instant;

/// A shard, and what it can take now.
pub(crate) struct Room {
    /// Which of the shards it is.
    pub(crate) shard: usize,
    /// Page slots that payload can have.
    pub(crate) slots: Slots,
    /// Bytes of payload that fit into them.
    pub(crate) bytes: u64,
}

/// Slots that the collected markers and the next one take at most.
const MARKER_SLOTS: Slots = Slots(3);

/// A shard with room, of those from `first` on, if one has enough for `wanted` bytes or a quarter of
/// its pipe, at `density` bytes of payload a slot: the first one that has three quarters of its pipe
/// free, beginning with the one that was given something longest ago; else the one with the most
/// room, and among equals the one that was given the least.
///
/// A quarter: with half, a reader that empties its pipe in two gulps waits for us; with less,
/// each waking-up moves too little to be worth it.
///
/// Three quarters: to look at a shard that has just been given something takes a call, and the time
/// in which its reader copies. Looking at all of them takes a tenth more CPU time with 4 shards, and
/// a third more with 16 (`make bench`, capture-4-splice and capture-16-splice).
///
/// Those that poll has found full have no room, and those that are left to their readers are not
/// looked at.
pub(crate) fn find(
    shards: &mut [Shard],
    first: usize,
    wanted: u64,
    density: u64,
) -> Result<Option<Room>, Error> {
    let now = Instant::now();
    let mut best: Option<(Room, u64)> = None;
    let mut oldest_first: Vec<_> = shards.iter_mut().enumerate().skip(first).collect();
    oldest_first.sort_by_key(|(_, shard)| shard.given_at());
    for (index, shard) in oldest_first {
        if shard.is_full() {
            shard.note_room(false, now);
            continue;
        }
        if shard.left_alone(now).is_some() {
            continue;
        }
        let room = of(index, shard, density)?
            .filter(|room| room.bytes >= wanted || room.slots >= shard.slots() / 4);
        shard.note_room(room.is_some(), now);
        let Some(room) = room else { continue };
        if room.slots >= shard.slots().saturating_sub(shard.slots() / 4) {
            return Ok(Some(room));
        }
        let given = shard.given();
        let is_better = best.as_ref().is_none_or(|(best, least)| {
            room.bytes > best.bytes || (room.bytes == best.bytes && given < *least)
        });
        if is_better {
            best = Some((room, given));
        }
    }
    Ok(best.map(|(room, _)| room))
}

fn of(index: usize, shard: &mut Shard, density: u64) -> Result<Option<Room>, Error> {
    if shard.is_in_debt() {
        return Ok(None);
    }
    let free = shard.free()?;
    // An empty pipe is used however small it is, and one that would never have room by this count
    // as soon as poll can tell: what does not fit is owed.
    let kept = MARKER_SLOTS + Slots(1);
    let is_usable = free == shard.slots() || (free > Slots(0) && shard.slots() <= kept);
    let slots = free.saturating_sub(kept).max(Slots(u64::from(is_usable)));
    let bytes = slots.bytes(density);
    Ok((bytes > 0).then_some(Room { shard: index, slots, bytes }))
}

/// The room of a shard as far as it is known without looking, if `wanted` bytes fit, and half of
/// its pipe is free: past that, another shard may have more.
pub(crate) fn known(index: usize, shard: &Shard, wanted: u64, density: u64) -> Option<Room> {
    let free = shard.free_at_least();
    let slots = free.saturating_sub(MARKER_SLOTS + Slots(1));
    let bytes = slots.bytes(density);
    let is_enough = bytes >= wanted.max(1) && free >= shard.slots() / 2 && !shard.is_in_debt();
    is_enough.then_some(Room { shard: index, slots, bytes })
}
