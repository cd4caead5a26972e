//! Serving memory: one thread answers CRIU and whoever waits for a page, before all else, and
//! follows what the processes do; the fillers bring the rest meanwhile.

use crate::connection::{Connection, Event};
use crate::keeper::Keeper;
use crate::space::{Answer, News, Space};
use crate::tree::Tree;
use crate::work::Work;
use crate::{Error, Pages};
use criu_protocol::{Direction, Listener};
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::socket;
use pipe_io::userfault::UserFault;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Whether memory can be had on demand here.
pub fn check() -> Result<(), Error> {
    Ok(UserFault::check()?)
}

/// Who listens for CRIU's processes.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    work: Work,
    /// The connection, until it is taken by the thread that serves it.
    accepted: Mutex<Option<UnixStream>>,
    connected: AtomicBool,
    /// Whether nobody serves memory any more.
    closed: AtomicBool,
    /// Whether CRIU has all that it gets as a stream: who has not connected by then never does.
    streamed: AtomicBool,
}

/// What is told while memory is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The processes are let run.
    Restored,
    /// The processes have just been let run, a second has passed, or all is over.
    Filling {
        /// Bytes that have come.
        filled: u64,
        /// Bytes that are still to come.
        left: u64,
        /// Since the processes were let run.
        time: Duration,
    },
}

/// How often [`Moment::Filling`] is told.
const TELLING: Duration = Duration::from_secs(1);

impl Server {
    /// Listens in CRIU's working directory.
    pub fn bind(directory: &Path) -> Result<Server, Error> {
        let listener = Listener::bind(directory, Direction::LazyPages).map_err(Error::Listen)?;
        socket::ask_for_senders(&listener).map_err(Error::System)?;
        let work = Work::new().map_err(Error::System)?;
        Ok(Server {
            listener,
            work,
            accepted: Mutex::default(),
            connected: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            streamed: AtomicBool::new(false),
        })
    }

    /// Where the socket is. The caller removes it when it is done.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Whether CRIU has connected by now, and is served: one that was not told `--lazy-pages` never
    /// does, and restores what is left out as zeros.
    pub fn has_connected(&self) -> Result<bool, Error> {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Ok(false);
        }
        if !self.is_connected() {
            *accepted = self.listener.accept_stream().map_err(Error::System)?;
            if accepted.is_some() {
                self.connected.store(true, Ordering::Release);
                self.listener.refuse_more();
                self.work.ring();
            }
        }
        Ok(self.is_connected())
    }

    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Hangs up on CRIU, and takes no more connections: it cannot let processes run any more.
    fn close(&self) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        self.listener.refuse_more();
        *accepted = None;
    }

    fn take_connection(&self) -> Option<Connection> {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.take().map(Connection::new)
    }

    /// Notes that CRIU has hung up where it reads the image.
    pub fn stream_is_over(&self) {
        self.streamed.store(true, Ordering::Release);
        self.work.ring();
    }

    /// Serves until all memory is there or nobody is there to have it. After an error all processes
    /// that lack memory have been killed.
    pub fn run(
        &self,
        pages: &Pages,
        keeper: &Keeper,
        fillers: NonZeroUsize,
        tell: impl FnMut(Moment),
    ) -> Result<(), Error> {
        let served = self.serve(pages, keeper, fillers, tell);
        self.close();
        served
    }

    fn serve(
        &self,
        pages: &Pages,
        keeper: &Keeper,
        fillers: NonZeroUsize,
        tell: impl FnMut(Moment),
    ) -> Result<(), Error> {
        let mut serving = Serving {
            server: self,
            pages,
            keeper,
            fillers: fillers.get(),
            connection: None,
            restored: None,
            spaces: Vec::new(),
            waiting: Vec::new(),
            tree: Tree::default(),
            search: None,
            tell,
            told: Instant::now(),
        };
        thread::scope(|scope| {
            for filler in 0..fillers.get() {
                let fill = move || self.work.fill(filler, pages);
                let thread = thread::Builder::new().name("filler".into());
                if let Err(error) = thread.spawn_scoped(scope, fill) {
                    self.work.end();
                    return Err(Error::System(error));
                }
            }
            let result = serving.serve();
            if result.is_err() {
                self.close();
                serving.connection = None;
                serving.end_processes();
            }
            self.work.end();
            result
        })
    }
}

struct Serving<'a, T> {
    server: &'a Server,
    pages: &'a Pages,
    keeper: &'a Keeper,
    fillers: usize,
    connection: Option<Connection>,
    /// When the processes were let run.
    restored: Option<Instant>,
    spaces: Vec<Arc<Space>>,
    /// Who could not be answered yet.
    waiting: Vec<(Arc<Space>, u64)>,
    tree: Tree,
    /// When to look for forked children next.
    search: Option<Search>,
    tell: T,
    /// When something was told last.
    told: Instant,
}

/// A look for the children of forks, which are not there yet when the fork is told of.
struct Search {
    at: Instant,
    pause: Duration,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    criu: bool,
    keeper: bool,
    bell: bool,
    /// One for each space.
    spaces: Vec<bool>,
}

impl<T: FnMut(Moment)> Serving<'_, T> {
    fn serve(&mut self) -> Result<(), Error> {
        while !self.is_over()? {
            let ready = self.wait()?;
            if ready.keeper {
                return Err(Error::KeeperDied);
            }
            self.read(&ready.spaces)?;
            self.answer_waiting()?;
            if ready.bell {
                self.server.work.hear()?;
            }
            if ready.criu || ready.bell {
                self.hear_criu()?;
            }
            self.search()?;
            self.forget_complete();
            if self.told.elapsed() >= TELLING {
                self.tell_of_filling();
            }
        }
        self.tell_of_filling();
        Ok(())
    }

    /// Whether there is nothing more to come, and nothing left to be done.
    fn is_over(&self) -> Result<bool, Error> {
        // In this order: who connects does so before the stream is over.
        let is_streamed = self.server.streamed.load(Ordering::Acquire);
        let is_last = match self.server.has_connected()? {
            true => self.restored.is_some(),
            false => is_streamed,
        };
        Ok(is_last && self.spaces.is_empty())
    }

    fn wait(&self) -> Result<Ready, Error> {
        let listens = || PollFd::new(self.server.listener.as_fd(), PollFlags::POLLIN);
        let criu = match &self.connection {
            Some(connection) => Some(PollFd::new(connection.as_fd(), PollFlags::POLLIN)),
            None => (!self.server.is_connected()).then(listens),
        };
        let mut fds = vec![
            PollFd::new(self.keeper.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.server.work.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.spaces.iter().map(|space| PollFd::new(space.as_fd(), PollFlags::POLLIN)));
        let has_criu = criu.is_some();
        fds.extend(criu);
        poll::wait_for(&mut fds, self.patience()).map_err(Error::System)?;
        let mut ready = fds.iter().map(|fd| fd.revents().is_some_and(|it| !it.is_empty()));
        Ok(Ready {
            keeper: ready.next().unwrap_or(false),
            bell: ready.next().unwrap_or(false),
            spaces: ready.by_ref().take(self.spaces.len()).collect(),
            criu: has_criu && ready.next().unwrap_or(false),
        })
    }

    /// How long nothing may happen.
    fn patience(&self) -> Duration {
        /// For threads that cannot be answered while their memory is changing.
        const AGAIN: Duration = Duration::from_millis(1);

        let search = self.search.as_ref();
        let search = search.map(|search| search.at.saturating_duration_since(Instant::now()));
        let again = (!self.waiting.is_empty()).then_some(AGAIN);
        [search, again].into_iter().flatten().min().unwrap_or(TELLING).min(TELLING)
    }

    /// Reads what the kernel tells, and answers who waits.
    fn read(&mut self, ready: &[bool]) -> Result<(), Error> {
        let ready = self.spaces.iter().zip(ready).filter(|(_, ready)| **ready);
        let ready: Vec<_> = ready.map(|(space, _)| Arc::clone(space)).collect();
        for space in ready {
            let mut news = News::default();
            let read = space.read(&mut news);
            // Before anything can fail.
            self.add_children(news.children);
            read?;
            for address in news.faults {
                if space.answer(address, self.pages)? == Answer::Later {
                    self.waiting.push((Arc::clone(&space), address));
                }
            }
        }
        Ok(())
    }

    fn add_children(&mut self, children: Vec<Space>) {
        if children.is_empty() {
            return;
        }
        self.search = Some(Search { at: Instant::now(), pause: Duration::from_millis(1) });
        children.iter().for_each(Space::open);
        self.spaces.extend(children.into_iter().map(Arc::new));
        self.server.work.set(&self.spaces);
    }

    fn answer_waiting(&mut self) -> Result<(), Error> {
        for (space, address) in std::mem::take(&mut self.waiting) {
            if !space.is_gone() && space.answer(address, self.pages)? == Answer::Later {
                self.waiting.push((space, address));
            }
        }
        Ok(())
    }

    fn hear_criu(&mut self) -> Result<(), Error> {
        if !self.server.has_connected()? {
            return Ok(());
        }
        if let Some(connection) = self.server.take_connection() {
            self.connection = Some(connection);
        }
        while let Some(connection) = &mut self.connection {
            match connection.next_event()? {
                None => return Ok(()),
                Some(Event::Memory { pid, sender, memory }) => self.add(pid, sender, memory)?,
                Some(Event::Restored) => self.begin(),
                Some(Event::HangUp) => return Err(Error::NotRestored),
            }
        }
        Ok(())
    }

    fn add(&mut self, pid: i32, sender: i32, memory: UserFault) -> Result<(), Error> {
        // Before anything else: what can be known only here must outlive us.
        if sender <= 0 {
            return Err(Error::Unseen);
        }
        self.tree.add(sender);
        self.keeper.tell(sender)?;
        let layout = self.pages.layout(pid, self.fillers).ok_or(Error::Stranger(pid))?;
        self.spaces.push(Arc::new(Space::new(memory, layout)));
        Ok(())
    }

    /// The processes are let run.
    fn begin(&mut self) {
        self.restored = Some(Instant::now());
        self.connection = None;
        self.spaces.iter().for_each(|space| space.open());
        self.server.work.set(&self.spaces);
        (self.tell)(Moment::Restored);
        self.tell_of_filling();
    }

    /// Looks for the children of forks: they must be killed too if it comes to that.
    fn search(&mut self) -> Result<(), Error> {
        const LONGEST: Duration = Duration::from_millis(32);

        let Some(search) = &mut self.search else { return Ok(()) };
        if Instant::now() < search.at {
            return Ok(());
        }
        search.at += search.pause;
        search.pause *= 2;
        if search.pause > LONGEST {
            self.search = None;
        }
        self.tree.prune();
        self.tree.add_children().into_iter().try_for_each(|pid| self.keeper.tell(pid))
    }

    /// Lets go of the memory that is complete. What it may lack then is zeros.
    fn forget_complete(&mut self) {
        if self.spaces.iter().any(|space| space.is_over()) {
            self.spaces.retain(|space| !space.is_over());
            self.waiting.retain(|(space, _)| !space.is_over());
            self.server.work.set(&self.spaces);
        }
    }

    fn tell_of_filling(&mut self) {
        let Some(restored) = self.restored else { return };
        self.told = Instant::now();
        let filled = self.pages.filled();
        let left = self.spaces.iter().map(|space| space.missing()).sum();
        (self.tell)(Moment::Filling { filled, left, time: restored.elapsed() });
    }

    /// Ends all processes whose memory is not complete.
    fn end_processes(&mut self) {
        let spaces = &mut self.spaces;
        let mut is_left = || {
            spaces.retain(|space| space.is_alive());
            !spaces.is_empty()
        };
        if is_left() {
            self.tree.end(is_left, |message| self.keeper.say(message));
        }
    }
}
