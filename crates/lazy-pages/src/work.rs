//! Bringing what nobody waits for: the fillers.

use crate::layout::Claim;
use crate::space::{PIECE, Space};
use crate::{Error, Pages};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the fillers have to do, and the bell by which they call the thread that reads messages.
#[derive(Debug)]
pub(crate) struct Work {
    state: Mutex<State>,
    news: Condvar,
    bell: EventFd,
}

#[derive(Debug, Default)]
struct State {
    spaces: Vec<Arc<Space>>,
    ended: bool,
    failed: Option<Error>,
}

impl Work {
    pub(crate) fn new() -> io::Result<Work> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Work { state: Mutex::default(), news: Condvar::new(), bell })
    }

    /// These memories are to be filled.
    pub(crate) fn set(&self, spaces: &[Arc<Space>]) {
        self.state().spaces = spaces.to_vec();
        self.news.notify_all();
    }

    /// There is nothing more to be done.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.news.notify_all();
    }

    /// Calls the thread that reads messages.
    pub(crate) fn ring(&self) {
        // It fails only when the bell has rung often enough.
        let _ = self.bell.write(1);
    }

    /// Notes that the bell was heard; fails as a filler has failed.
    pub(crate) fn hear(&self) -> Result<(), Error> {
        let _ = self.bell.read();
        self.state().failed.take().map_or(Ok(()), Err)
    }

    /// Fills until the end.
    pub(crate) fn fill(&self, filler: usize, pages: &Pages) {
        let mut buffer = vec![0; PIECE];
        while let Some((space, claim)) = self.next(filler) {
            if let Err(error) = fill(filler, &space, claim, &mut buffer, pages) {
                self.state().failed.get_or_insert(error);
                self.ring();
                return;
            }
            if space.is_over() {
                self.ring();
            }
        }
    }

    /// The next piece, which is waited for; `None` at the end.
    fn next(&self, filler: usize) -> Option<(Arc<Space>, Claim)> {
        let mut state = self.state();
        loop {
            if state.ended {
                return None;
            }
            // Each begins with another, as far as there are several.
            let count = state.spaces.len();
            let turns = state.spaces.iter().cycle().skip(filler % count.max(1)).take(count);
            let found = turns.map(|space| (space, space.claim(filler)));
            let found = found.filter_map(|(space, claim)| Some((Arc::clone(space), claim?))).next();
            if found.is_some() {
                return found;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fill(
    filler: usize,
    space: &Space,
    claim: Claim,
    buffer: &mut [u8],
    pages: &Pages,
) -> Result<(), Error> {
    let length = usize::try_from(claim.length).unwrap_or(usize::MAX);
    let (bytes, _) = buffer.split_at_mut_checked(length).ok_or(Error::Changed)?;
    pages.read(claim.file, claim.offset, bytes)?;
    space.bring(filler, claim, bytes, pages)
}

impl AsFd for Work {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
