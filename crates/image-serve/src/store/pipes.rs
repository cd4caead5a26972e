//! How many pipes may be held, and how large.

use super::Choice;
use pipe_io::inherit::raise_descriptor_limit;
use pipe_io::pipe::{self, Pipe};
use pipe_io::{Endpoint, Region};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes pipes to hold pieces in, until there are no more to be had.
#[derive(Debug)]
pub(crate) struct Pipes {
    choice: Choice,
    /// How many more descriptors may be used for pipes.
    descriptors: u64,
    /// How many have come back.
    returned: Arc<AtomicU64>,
    /// Whether CRIU reads while the image arrives.
    live: bool,
    /// Bytes that are to be copied before pages are moved again.
    detour: u64,
    /// Bytes that the store has taken in, of all files.
    held: u64,
    /// The capacities of the pipes that are being filled, in bytes.
    filling: u64,
    /// What a file has left of the memory that it was packed into, for the next.
    spare: Option<Region>,
    /// Pipes that hold nothing, but whose page slots count. See [`ballast`].
    ballast: Vec<OwnedFd>,
}

/// A pipe that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) read: Resting,
    pub(crate) write: Endpoint,
    pub(crate) capacity: u64,
    /// How many bytes are in it.
    pub(crate) bytes: u64,
}

/// The end of a pipe where what it holds comes out. When it is dropped, another pipe may be made.
#[derive(Debug)]
pub(crate) struct Resting {
    read: Endpoint,
    returned: Option<Arc<AtomicU64>>,
}

impl Resting {
    /// No other pipe is to be made for this one.
    pub(crate) fn give_up(mut self) {
        self.returned = None;
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        if let Some(returned) = &self.returned {
            returned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AsFd for Resting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

impl Read for &Resting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.read).read(buffer)
    }
}

/// Why there is no pipe where only a pipe would do.
#[derive(Debug)]
pub(crate) enum NoPipe {
    /// No descriptor is left for it.
    Descriptors,
    /// It would be too small.
    Slots,
    /// Another reason.
    System(io::Error),
}

/// The capacity of the first pipes, in bytes.
const FIRST: u64 = 1 << 20;

/// The largest capacity that we want of a pipe, in bytes. With CAP_SYS_RESOURCE it is had: at the
/// 1 MiB of others an image of 10 GB takes 10,000 descriptors in the place of 400. Larger ones
/// save no more that counts.
const MOST: u64 = 32 << 20;

/// While a pipe is being filled we cannot see how full its pages are: its slots may hold
/// thousands of times the memory that its bytes need. So all pipes that are being filled together
/// have at most this part of the bytes that are held already. At half of it there are twice as
/// many pipes; at double a slow writer makes us hold a quarter more than the image.
const UNSEEN_PART: u64 = 8;

/// A pipe of less holds too little for a descriptor. New pipes come so small to a user who has
/// more than `pipe-user-pages-soft` allows.
const LEAST: u64 = 256 << 10;

/// After a pipe that was full of half-filled pages, so many bytes are copied: a writer that
/// writes in such pieces will go on doing so, but need not for ever.
const DETOUR: u64 = 16 << 20;

impl Pipes {
    /// Where the user has chosen so; `Auto` and `Memory` never fail for want of pipes.
    pub(crate) fn new(choice: Choice) -> Pipes {
        // For the socket, the signals, and what CRIU opens at once: two for each process.
        let limit = raise_descriptor_limit();
        let reserve = (limit / 8).max(24);
        Pipes {
            choice,
            descriptors: limit.saturating_sub(reserve),
            returned: Arc::default(),
            live: false,
            detour: 0,
            held: 0,
            filling: 0,
            spare: None,
            ballast: ballast(choice),
        }
    }

    /// From now on CRIU reads while the image arrives: pieces are small, so that it has them soon.
    /// Returns the pipes that were kept for CRIU's own, to be dropped when it has opened some.
    pub(crate) fn go_live(&mut self) -> Vec<OwnedFd> {
        self.live = true;
        std::mem::take(&mut self.ballast)
    }

    /// Whether the next bytes should be copied, as their writer leaves pages half empty.
    pub(crate) fn copies(&self) -> bool {
        self.choice == Choice::Memory || self.detour > 0
    }

    /// Whether what is copied must go to pipes too.
    pub(crate) fn only(&self) -> bool {
        self.choice == Choice::Pipe
    }

    /// Memory in small pages to be filled, where no pipe will do. Files of less than a mebibyte
    /// share what is mapped at once: there may be more of them than a program may have mappings.
    pub(crate) fn memory(&mut self, capacity: usize) -> io::Result<Region> {
        self.spare.take().map_or_else(|| Region::small_pages(capacity), Ok)
    }

    /// Keeps what a file has left of its memory, for the next.
    pub(crate) fn spare(&mut self, rest: Region) {
        /// Less is not worth a piece of its own, in bytes.
        const LEAST: usize = 64 << 10;

        let best = self.spare.as_ref().map_or(LEAST, Region::capacity);
        if !rest.is_huge() && rest.capacity() >= best {
            self.spare = Some(rest);
        }
    }

    /// A pipe to be filled, or `None` where memory must do.
    pub(crate) fn get(&mut self) -> Result<Option<Filling>, NoPipe> {
        self.descriptors += self.returned.swap(0, Ordering::Relaxed);
        match self.make() {
            Ok(pipe) => {
                self.descriptors -= 1;
                self.filling += pipe.capacity;
                Ok(Some(pipe))
            }
            Err(no_pipe) if self.only() => Err(no_pipe),
            // No use in trying again before one has come back: CRIU has read it then.
            Err(_) => {
                self.descriptors = 0;
                Ok(None)
            }
        }
    }

    fn make(&self) -> Result<Filling, NoPipe> {
        if self.descriptors == 0 {
            return Err(NoPipe::Descriptors);
        }
        let Pipe { read, write } = Pipe::new().map_err(NoPipe::System)?;
        let wanted = match self.live {
            true => pipe::WANTED,
            false => wanted(self.held, self.filling) as usize,
        };
        let capacity = pipe::grow(&write, wanted).map_err(NoPipe::System)? as u64;
        if capacity < LEAST {
            return Err(NoPipe::Slots);
        }
        let endpoint =
            |fd| Endpoint::new(fd).map_err(|error| NoPipe::System(io::Error::other(error)));
        let read = Resting { read: endpoint(read)?, returned: Some(Arc::clone(&self.returned)) };
        Ok(Filling { read, write: endpoint(write)?, capacity, bytes: 0 })
    }

    /// Notes that a pipe is filled, and now full of half-filled pages if it is `sparse`.
    pub(crate) fn was_filled(&mut self, filling: &Filling, sparse: bool) {
        self.filling = self.filling.saturating_sub(filling.capacity);
        if sparse {
            self.detour = DETOUR;
        }
    }

    /// Notes that the store has taken in bytes, by copying them or not.
    pub(crate) fn took_in(&mut self, bytes: u64, copied: bool) {
        self.held += bytes;
        if copied {
            self.detour = self.detour.saturating_sub(bytes);
        }
    }
}

/// The capacity that the next pipe should have, in bytes, where so much is held and pipes of so
/// much are being filled. A power of two, as it would be rounded up to.
fn wanted(held: u64, filling: u64) -> u64 {
    let unseen = (held / UNSEEN_PART).saturating_sub(filling).clamp(FIRST, MOST);
    1 << unseen.ilog2()
}

/// Some pipes that exist while the image is loaded, and go when CRIU may be started.
///
/// A user without privileges has 64 MiB of page slots for all pipes together. If the store took
/// them all, CRIU's own pipes would have two pages, and every restore on the machine that runs
/// under this user would crawl.
fn ballast(choice: Choice) -> Vec<OwnedFd> {
    /// Enough for each of the files that CRIU reads at once on a machine with few CPUs.
    const PIPES: usize = 8;

    let pipes = if choice == Choice::Memory { 0 } else { PIPES };
    let pipe = || {
        let Pipe { read, .. } = Pipe::new().ok()?;
        pipe::grow(&read, FIRST as usize).ok()?;
        Some(read)
    };
    std::iter::from_fn(pipe).take(pipes).collect()
}

impl std::fmt::Display for NoPipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoPipe::Descriptors => f.write_str(
                "no descriptor is left for one more pipe (see ulimit -n; \
                 --store=auto goes on in memory)",
            ),
            NoPipe::Slots => f.write_str(
                "pipes come too small (see pipe-user-pages-soft and pipe-max-size in \
                 /proc/sys/fs; --store=auto goes on in memory)",
            ),
            NoPipe::System(error) => f.write_str(&cli::reason(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_little_of_what_is_held() {
        let mut held = 0;
        let mut pipes = 0;
        while held < 10 << 30 {
            for filling in [0, FIRST, 100 << 20] {
                let unseen = wanted(held, filling);
                assert!(unseen == FIRST || (unseen + filling) * UNSEEN_PART <= held, "{held}");
            }
            held += wanted(held, 0);
            pipes += 1;
        }
        assert!(pipes < 400, "{pipes} pipes for 10 GiB");
    }
}
