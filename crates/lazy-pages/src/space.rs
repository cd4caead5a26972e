//! The memory of one process, and bringing its pages.

use crate::layout::{Claim, Layout};
use crate::ranges::Range;
use crate::{Error, Pages};
use pipe_io::pipe::page;
use pipe_io::userfault::{Message, Obstacle, Stopped, UserFault};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How much is brought at once, in bytes. While a piece is on its way no message can be read, so a
/// thread that waits for a page may wait for this first.
pub(crate) const PIECE: usize = 256 << 10;

/// How much is brought to a thread that waits for one page, in bytes: what it touches next is
/// often near.
const AROUND: u64 = 64 << 10;

/// The memory of one process.
#[derive(Debug)]
pub(crate) struct Space {
    memory: UserFault,
    layout: Mutex<Layout>,
    /// Held by whoever brings pages, and alone by who reads messages: what was to be brought must
    /// not arrive after the message that it has moved, when the process has gone on.
    order: RwLock<()>,
    /// Whether a page was brought since the last change: then all changes before it are complete.
    settled: AtomicBool,
    gone: AtomicBool,
    /// Whether pages are brought that nobody waits for.
    is_open: AtomicBool,
}

/// What reading messages has brought to light.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Addresses that threads wait for.
    pub(crate) faults: Vec<u64>,
    /// What fork's children lack.
    pub(crate) children: Vec<Space>,
    /// How many of them were forked before all that is told now.
    settled: usize,
}

/// How far a waiting thread was helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It goes on.
    Given,
    /// The layout is changing: to be tried again.
    Later,
}

/// Messages that are read before the waiting threads are answered.
const MESSAGES: usize = 64;

/// How long a process may take to complete changes before others are waited for: a thread has to be
/// woken up.
const CALM: Duration = Duration::from_micros(200);

/// How long a parent may take to complete the changes that it was making while it forked.
const SETTLING: Duration = Duration::from_secs(1);

impl Space {
    /// The memory of a process, of which `layout` is still to come.
    pub(crate) fn new(memory: UserFault, layout: Layout) -> Space {
        Space {
            memory,
            layout: Mutex::new(layout),
            order: RwLock::new(()),
            settled: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
        }
    }

    /// From now on pages are brought that nobody waits for.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Whether nothing is left to be done: all is there, or nobody to have it.
    pub(crate) fn is_over(&self) -> bool {
        self.is_open.load(Ordering::Acquire) && (self.is_gone() || self.layout().is_complete())
    }

    /// Whether the process was seen to have ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether the memory is there to be filled.
    pub(crate) fn is_alive(&self) -> bool {
        self.memory.is_alive()
    }

    /// Bytes that are still to come.
    pub(crate) fn missing(&self) -> u64 {
        self.layout().bytes()
    }

    /// Gives a filler something to bring.
    pub(crate) fn claim(&self, filler: usize) -> Option<Claim> {
        let is_open = self.is_open.load(Ordering::Acquire) && !self.is_gone();
        is_open.then(|| self.layout().claim(filler, PIECE as u64))?
    }

    /// Reads the messages that have come. What they have brought to light is there after an error
    /// too: a child whose memory was dropped would read zeros.
    pub(crate) fn read(&self, news: &mut News) -> Result<(), Error> {
        let _alone = self.alone();
        for _ in 0..MESSAGES {
            let message = self.memory.next_message().map_err(Error::System)?;
            let Some(message) = message else { break };
            self.take(message, news);
            if news.settled < news.children.len() {
                self.calm_down(news, SETTLING)?;
                news.settled = news.children.len();
            }
        }
        if self.layout().is_unsettled() {
            self.calm_down(news, CALM)?;
        }
        Ok(())
    }

    /// Reads messages until the process has completed all changes that it was making, but no longer
    /// than that: then nothing is in doubt.
    fn calm_down(&self, news: &mut News, limit: Duration) -> Result<(), Error> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if !self.memory.is_changing() {
                let mut layout = self.layout();
                layout.settled();
                self.resolve_doubts(&mut layout);
                break;
            }
            match self.memory.next_message().map_err(Error::System)? {
                Some(message) => self.take(message, news),
                None => thread::yield_now(),
            }
        }
        Ok(())
    }

    fn resolve_doubts(&self, layout: &mut Layout) {
        let doubts: Vec<_> = layout.doubts().collect();
        for (address, range) in doubts {
            match self.memory.probe(address) {
                // It has begun to change again.
                Some(Obstacle::Changing) => {}
                obstacle => layout.resolve(address, range, obstacle != Some(Obstacle::Unmapped)),
            }
        }
    }

    /// Follows what the process does.
    fn take(&self, message: Message, news: &mut News) {
        let mut layout = self.layout();
        if self.settled.swap(false, Ordering::Relaxed) {
            layout.settled();
        }
        match message {
            Message::Fault(address) => news.faults.push(address),
            Message::Remap { from, to, length } => {
                layout.remap(from, to, length);
                let moved = layout.part(to, to.saturating_add(length));
                for child in news.children.iter().skip(news.settled) {
                    child.has_also(&moved);
                }
            }
            Message::Remove { start, end } => layout.remove(start, end),
            Message::Unmap { start, end } => layout.unmap(start, end),
            Message::Fork(memory) => {
                let child = Space::new(memory, layout.child());
                child.has_also(layout.moved());
                news.children.push(child);
            }
        }
    }

    /// Adds what is to come at other places, where this memory has something there.
    fn has_also(&self, places: &[(u64, Range)]) {
        for (address, range) in places {
            if self.memory.probe(*address) != Some(Obstacle::Unmapped) {
                self.layout().also(*address, *range);
            }
        }
    }

    /// Brings the page that a thread waits for. Only for who reads the messages: so the layout is
    /// known.
    pub(crate) fn answer(&self, address: u64, pages: &Pages) -> Result<Answer, Error> {
        let found = self.layout().find(address);
        let Some(range) = found else { return self.answer_with_zeros(address) };
        let length = range.length.min(AROUND);
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(page())];
        pages.read(range.file, range.offset, &mut buffer)?;
        let (first, behind) = buffer.split_at_checked(page()).ok_or(Error::Changed)?;
        match self.memory.copy(address, first) {
            Ok(()) => {}
            Err(Stopped { obstacle: Obstacle::Changing, .. }) => return Ok(Answer::Later),
            Err(Stopped { obstacle: Obstacle::Gone, .. }) => {
                self.gone.store(true, Ordering::Relaxed);
                return Ok(Answer::Given);
            }
            // Brought meanwhile, or unmapped: it will see.
            Err(Stopped { obstacle: Obstacle::Present | Obstacle::Unmapped, .. }) => {
                self.memory.wake(address);
                return Ok(Answer::Given);
            }
            Err(Stopped { obstacle: Obstacle::System(error), .. }) => {
                return Err(Error::Bring(error));
            }
        }
        // What cannot be brought now will be.
        let more = match self.memory.copy(address + page() as u64, behind) {
            Ok(()) => behind.len() as u64,
            Err(stopped) => stopped.done,
        };
        self.layout().forget(address, page() as u64 + more);
        self.settled.store(true, Ordering::Relaxed);
        pages.brought(page() as u64 + more);
        Ok(Answer::Given)
    }

    /// The image has nothing for this page.
    fn answer_with_zeros(&self, address: u64) -> Result<Answer, Error> {
        match self.memory.zero(address, page() as u64) {
            Ok(()) => {}
            Err(Stopped { obstacle: Obstacle::Changing, .. }) => return Ok(Answer::Later),
            Err(Stopped { obstacle: Obstacle::Gone, .. }) => {
                self.gone.store(true, Ordering::Relaxed);
            }
            Err(Stopped { obstacle: Obstacle::Present | Obstacle::Unmapped, .. }) => {
                self.memory.wake(address);
            }
            Err(Stopped { obstacle: Obstacle::System(error), .. }) => {
                return Err(Error::Bring(error));
            }
        }
        Ok(Answer::Given)
    }

    /// Brings what a filler has claimed, from `bytes`, where it was read to.
    pub(crate) fn bring(
        &self,
        filler: usize,
        claim: Claim,
        bytes: &[u8],
        pages: &Pages,
    ) -> Result<(), Error> {
        const SHORTEST: Duration = Duration::from_micros(20);
        const LONGEST: Duration = Duration::from_millis(5);
        /// How long what the image has may be absent before that is taken for wrong.
        const PATIENCE: Duration = Duration::from_secs(2);

        let mut pause = SHORTEST;
        let mut absent_since = None;
        loop {
            match self.try_to_bring(filler, claim, bytes, pages) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Seen in a process that gave memory back all the time: its layout was behind for a
                // moment. Nothing is brought meanwhile, so nothing can go wrong.
                Err(Error::NotThere(_))
                    if absent_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {}
                Err(error) => return Err(error),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// `false` if the layout is changing.
    fn try_to_bring(
        &self,
        filler: usize,
        claim: Claim,
        bytes: &[u8],
        pages: &Pages,
    ) -> Result<bool, Error> {
        let _order = self.together();
        let (claimed, is_lenient) = {
            let layout = self.layout();
            (layout.claimed(filler), layout.is_lenient())
        };
        for (address, range) in claimed {
            let start = usize::try_from(range.offset - claim.offset).unwrap_or(usize::MAX);
            let length = usize::try_from(range.length).unwrap_or(usize::MAX);
            let bytes = bytes.get(start..).and_then(|bytes| bytes.get(..length));
            let run = Run { filler, address, doubtful: range.doubtful || is_lenient };
            if !self.bring_run(run, bytes.unwrap_or_default(), pages)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings pages that belong together. `false` if the layout is changing.
    fn bring_run(&self, run: Run, bytes: &[u8], pages: &Pages) -> Result<bool, Error> {
        let Run { filler, mut address, doubtful } = run;
        let mut rest = bytes;
        // More than a page cannot be copied at once across the end of a mapping.
        let mut limit = usize::MAX;
        while !rest.is_empty() {
            let (now, _) = rest.split_at(limit.min(rest.len()));
            let (copied, passed, obstacle) = match self.memory.copy(address, now) {
                Ok(()) => (now.len(), 0, None),
                Err(Stopped { done, obstacle }) => (done as usize, page(), Some(obstacle)),
            };
            let passed = match obstacle {
                None => 0,
                Some(Obstacle::Present) => passed,
                Some(Obstacle::Unmapped) if now.len() > page() => 0,
                Some(Obstacle::Unmapped) if doubtful => passed,
                Some(Obstacle::Unmapped) => return Err(Error::NotThere(address)),
                Some(Obstacle::Changing) => 0,
                Some(Obstacle::Gone) => {
                    self.gone.store(true, Ordering::Relaxed);
                    rest.len()
                }
                Some(Obstacle::System(error)) => return Err(Error::Bring(error)),
            };
            limit = match obstacle {
                Some(Obstacle::Unmapped) if now.len() > page() => page(),
                _ => usize::MAX,
            };
            let step = (copied + passed).min(rest.len());
            if copied > 0 {
                self.settled.store(true, Ordering::Relaxed);
                pages.brought(copied as u64);
            }
            self.layout().done(filler, address, step as u64);
            address += step as u64;
            rest = rest.get(step..).unwrap_or_default();
            if obstacle == Some(Obstacle::Changing) && copied == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.order.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn together(&self) -> RwLockReadGuard<'_, ()> {
        self.order.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that belong together.
struct Run {
    filler: usize,
    address: u64,
    doubtful: bool,
}

impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}
