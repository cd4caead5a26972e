//! The restore: CRIU asks for files, and all that it has open are filled at once.

use crate::arrivals::{Arrival, Arrivals};
use crate::error::Error;
use crate::lazy::Lazy;
use crate::network_lock::{self, LockError};
use crate::outflow::{Outflow, Poured};
use crate::store::{Found, Handed, Piece, Store};
use cli::{Child, Counters, Progress};
use criu_protocol::{Connection, Event, INVENTORY, Listener, ProtocolError};
use criu_protocol::{is_memory, is_nftables, is_only_network_lock, is_tcp};
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::{Emptied, Endpoint};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use wire_format::FileName;

/// A restore that goes on.
pub(crate) struct Restore<'a> {
    pub(crate) store: Store,
    /// What the image is read from, where it stays there.
    pub(crate) image: Option<&'a Endpoint>,
    /// What is still to come of it.
    pub(crate) arrivals: Option<Arrivals>,
    pub(crate) counters: &'a Counters,
    /// Pipes whose page slots are kept for those of CRIU that memory goes through.
    pub(crate) ballast: Vec<OwnedFd>,
    /// Whether CRIU gets no more memory before all of the image has come.
    pub(crate) holds_memory: bool,
    pub(crate) listener: &'a Listener,
    /// How many connections are still to come.
    pub(crate) awaited: usize,
    pub(crate) clients: Vec<Client>,
    pub(crate) outflows: Vec<Outflow>,
    /// Tells when their pipes have room.
    pub(crate) emptied: Emptied,
    /// How many files were opened.
    pub(crate) opened: u64,
    pub(crate) progress: &'a Progress,
    /// Whether it is known that CRIU can send one more pipe: what cannot be received is lost.
    pub(crate) has_room: bool,
    /// Whether the file was handed out that every restore begins with.
    pub(crate) begun: bool,
    /// The memory that comes late, and who must be connected before it is left out.
    pub(crate) lazy: Option<&'a Lazy>,
    /// Why CRIU's network lock could not be put in place.
    pub(crate) no_lock: Option<LockError>,
    /// What went wrong first: one connection's misfortune does not end the others.
    pub(crate) failed: Option<Error>,
}

/// A connection.
pub(crate) struct Client {
    /// No other has it.
    number: usize,
    connection: Connection,
    /// The file whose pipe is due.
    promised: Option<Handed>,
    /// It will be hung up on.
    is_given_up: bool,
}

/// What there is to do.
struct Ready {
    arrivals: bool,
    connection: bool,
    /// One for each client.
    clients: Vec<bool>,
    /// Whether pipes were read from.
    emptied: bool,
    /// Whether the command has news.
    child: bool,
}

impl Restore<'_> {
    /// Serves until the last connection has gone.
    pub(crate) fn run(mut self, child: &mut Option<Child>) -> Result<(), Error> {
        while self.awaited > 0 || !self.clients.is_empty() || !self.outflows.is_empty() {
            self.await_arrivals()?;
            let ready = self.wait(child.as_ref())?;
            if ready.arrivals {
                self.hear_arrivals()?;
            }
            self.pour(ready.emptied)?;
            // Before there are more clients.
            self.hear(&ready.clients);
            if ready.connection {
                self.accept(child.as_ref())?;
            }
            if let Some(child) = child.as_mut().filter(|_| ready.child) {
                self.attend(child)?;
            }
        }
        match self.failed {
            Some(error) => Err(error),
            None if self.arrivals.is_some() => Err(Error::LeftEarly),
            None if !self.begun => Err(Error::NotRestored),
            None => Ok(()),
        }
    }

    /// Takes note of the command's end, behind which no CRIU connects any more.
    fn attend(&mut self, child: &mut Child) -> Result<(), Error> {
        let mut attended = child.attend().map_err(Error::Command);
        if attended.is_ok() && child.has_ended() && self.awaited > 0 {
            self.accept(Some(child))?;
            if self.awaited > 0 {
                attended = Err(Error::Command(child.unconnected()));
            }
        }
        // What went wrong here may be why CRIU has failed.
        attended.map_err(|error| match self.failed.take() {
            Some(failed) if !failed.is_effect_of_criu_s_end() => failed,
            _ => error,
        })
    }

    fn wait(&self, child: Option<&Child>) -> Result<Ready, Error> {
        let mut fds = Vec::new();
        // Small files are gone before anybody must wait for their pipes.
        let has_outflows = !self.outflows.is_empty();
        if has_outflows {
            fds.push(PollFd::new(self.emptied.as_fd(), PollFlags::POLLIN));
        }
        let clients = self.clients.iter();
        fds.extend(clients.map(|it| PollFd::new(it.connection.as_fd(), PollFlags::POLLIN)));
        if self.awaited > 0 {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        if let Some(arrivals) = &self.arrivals {
            fds.push(PollFd::new(arrivals.as_fd(), PollFlags::POLLIN));
        }
        let others = child.iter().flat_map(|child| child.fds());
        fds.extend(others.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let now = Instant::now();
        let outflows = self.outflows.iter().filter(|outflow| !self.is_held(outflow));
        match outflows.filter_map(|outflow| outflow.next_turn(now)).min() {
            Some(turn) => poll::wait_for(&mut fds, turn).map(drop),
            None => poll::wait(&mut fds),
        }
        .map_err(Error::System)?;

        let mut ready = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        Ok(Ready {
            emptied: has_outflows && ready.next().unwrap_or(false),
            clients: ready.by_ref().take(self.clients.len()).collect(),
            connection: ready.by_ref().take(usize::from(self.awaited > 0)).any(|ready| ready),
            arrivals: ready.by_ref().take(self.arrivals.iter().len()).any(|ready| ready),
            child: ready.any(|ready| ready),
        })
    }

    fn accept(&mut self, child: Option<&Child>) -> Result<(), Error> {
        self.spare_a_descriptor()?;
        let connection = self.listener.accept().map_err(ProtocolError::Io)?;
        let Some(connection) = connection else { return Ok(()) };
        child.iter().for_each(|child| child.connected());
        self.clients.push(Client {
            number: self.awaited,
            connection,
            promised: None,
            is_given_up: false,
        });
        self.has_room = false;
        self.awaited -= 1;
        if self.awaited == 0 {
            self.listener.refuse_more();
        }
        Ok(())
    }

    /// Fills the pipes that have room. Those that are done are closed.
    fn pour(&mut self, has_emptied: bool) -> Result<(), Error> {
        let now = Instant::now();
        let emptied = if has_emptied { self.emptied.take() } else { Ok(Vec::new()) };
        let emptied = emptied.map_err(Error::System)?;
        let mut result = Ok(());
        let mut unread = Vec::new();
        let (image, holds_memory) = (self.image, self.holds_memory);
        let mut has_left_memory = false;
        self.outflows.retain_mut(|outflow| {
            let was_emptied = emptied.contains(&outflow.number);
            if was_emptied {
                outflow.was_emptied(now);
            }
            let is_memory = is_memory(outflow.file.name.as_str());
            let turn = outflow.next_turn(now).filter(|_| !(holds_memory && is_memory));
            let poured = match turn {
                _ if result.is_err() => return true,
                Some(Duration::ZERO) => outflow.pour(image),
                // Its reader may have gone.
                None if was_emptied => outflow.look(),
                _ => return true,
            };
            match poured {
                Ok(Poured::Some) => true,
                Ok(Poured::All) => false,
                Ok(Poured::Left) => {
                    has_left_memory |= is_memory;
                    false
                }
                Ok(Poured::Unread) => {
                    unread.push((outflow.client, outflow.file.name.clone()));
                    false
                }
                Err(error) => {
                    result = Err(error);
                    false
                }
            }
        });
        self.hold_memory_if(has_left_memory);
        for (number, name) in unread {
            let error = self.left_unread(name);
            self.give_up(number, error);
        }
        result
    }

    /// Hangs up on a client, and sends it no more.
    fn give_up(&mut self, number: usize, error: Error) {
        self.failed.get_or_insert(error);
        self.outflows.retain(|outflow| outflow.client != number);
        // `hear` still needs its place in the list.
        let client = self.clients.iter_mut().find(|client| client.number == number);
        client.into_iter().for_each(|client| client.is_given_up = true);
    }

    /// Where CRIU does not read some memory to its end, the newest piece may be of that, and keep no
    /// restore from finishing. Then all memory must.
    fn hold_memory_if(&mut self, has_left_memory: bool) {
        self.holds_memory |= has_left_memory && self.arrivals.is_some();
    }

    fn is_held(&self, outflow: &Outflow) -> bool {
        self.holds_memory && is_memory(outflow.file.name.as_str())
    }

    /// Puts CRIU's network lock in place, which it asks for and would not read; `true` if it is.
    fn put_lock_in_place(&mut self, file: &Handed, asker: Option<i32>) -> bool {
        let Some(rules) = lock_in(file).filter(|_| self.has_connections()) else { return false };
        network_lock::put_in_place(rules, asker).unwrap_or_else(|error| {
            self.no_lock = Some(error);
            false
        })
    }

    /// Whether it is no loss if CRIU does not read a file: its network lock, where there is no
    /// connection whose packets that would hold back.
    fn is_needless(&self, file: &Handed) -> bool {
        lock_in(file).is_some() && !self.has_connections()
    }

    fn has_connections(&self) -> bool {
        self.store.names().any(|name| is_tcp(name.as_str()))
    }

    /// CRIU has closed a file without having read it. Whoever waits for the restore is told at
    /// once, and CRIU is hung up on: where it needs another file, it fails before anything runs.
    fn left_unread(&mut self, name: FileName) -> Error {
        self.progress.unread(&name);
        match self.no_lock.take() {
            Some(error) if is_nftables(name.as_str()) => Error::NoLock(name, error),
            _ => Error::Unread(name),
        }
    }

    /// Answers the clients that have said something. Those that have hung up are dropped, and one
    /// that fails with all that it has open: it may never read it.
    fn hear(&mut self, ready: &[bool]) {
        let mut here = Vec::new();
        let clients = std::mem::take(&mut self.clients);
        for (index, mut client) in clients.into_iter().enumerate() {
            let is_ready = ready.get(index).copied().unwrap_or(false) && !client.is_given_up;
            match if is_ready { self.answer(&mut client) } else { Ok(true) } {
                Ok(true) if client.is_given_up => {}
                Ok(true) => here.push(client),
                Ok(false) => {}
                Err(error) => {
                    self.outflows.retain(|outflow| outflow.client != client.number);
                    self.failed.get_or_insert(error);
                }
            }
        }
        self.clients = here;
    }

    /// Answers what a client has said; `false` if it has hung up.
    fn answer(&mut self, client: &mut Client) -> Result<bool, Error> {
        self.spare_a_descriptor()?;
        client.connection.receive()?;
        while let Some(event) = client.connection.next_received()? {
            match event {
                Event::HangUp => return Ok(false),
                Event::Pipe(pipe) => {
                    let Some(file) = client.promised.take() else { continue };
                    if is_memory(file.name.as_str()) {
                        self.ballast.pop();
                    }
                    let number = self.opened;
                    self.opened += 1;
                    let needless = self.is_needless(&file);
                    let mut outflow = Outflow::new(client.number, number, file, needless, pipe)?;
                    let poured = match self.is_held(&outflow) {
                        true => outflow.look(),
                        false => outflow.pour(self.image),
                    };
                    match poured? {
                        Poured::Some => {
                            let watched = self.emptied.watch(&outflow, outflow.number);
                            watched.map_err(Error::System)?;
                            self.outflows.push(outflow);
                            self.has_room = false;
                        }
                        // Most files are small, and gone with this.
                        Poured::All => {}
                        Poured::Left => {
                            self.hold_memory_if(is_memory(outflow.file.name.as_str()));
                        }
                        Poured::Unread => return Err(self.left_unread(outflow.file.name)),
                    }
                }
                Event::Request(name) => {
                    if let (Some(lazy), Ok(name)) = (self.lazy, &name) {
                        lazy.check_request(name)?;
                    }
                    // A name that no file can have is one that does not exist.
                    let mut file = name.ok().and_then(|name| self.hand_out(&name));
                    let asker = client.connection.sender();
                    // It is told that there are none, then.
                    file.take_if(|file| self.put_lock_in_place(file, asker));
                    client.promised = file;
                    client.connection.reply(client.promised.is_some())?;
                }
            }
        }
        Ok(true)
    }

    /// Sees to it that CRIU can send one more pipe.
    fn spare_a_descriptor(&mut self) -> Result<(), Error> {
        // Another thread may have taken what there was, for a pipe or for memory on demand.
        self.has_room &= self.arrivals.is_none() && self.lazy.is_none();
        while !self.has_room {
            self.has_room = self.listener.as_fd().try_clone_to_owned().is_ok();
            if !self.has_room && !self.give_up_a_pipe().map_err(Error::System)? {
                break;
            }
        }
        Ok(())
    }

    fn give_up_a_pipe(&mut self) -> io::Result<bool> {
        if self.store.give_up_a_pipe()? {
            return Ok(true);
        }
        for outflow in &mut self.outflows {
            if outflow.give_up_a_pipe()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn hand_out(&mut self, name: &FileName) -> Option<Handed> {
        match self.store.hand_out(name) {
            Found::File(file) => {
                self.begun |= name.as_str() == INVENTORY;
                Some(file)
            }
            Found::None => None,
            Found::Gone => {
                self.failed.get_or_insert_with(|| Error::Gone(name.clone()));
                None
            }
        }
    }

    /// Where CRIU has little left to read of a file, sees to it that more is told of at once.
    fn await_arrivals(&mut self) -> Result<(), Error> {
        let Some(arrivals) = &self.arrivals else { return Ok(()) };
        let is_hungry = |it: &Outflow| it.is_hungry() && !self.is_held(it);
        if !self.outflows.iter().any(is_hungry) {
            return Ok(());
        }
        arrivals.await_more();
        self.take_arrivals()
    }

    fn hear_arrivals(&mut self) -> Result<(), Error> {
        self.arrivals.as_mut().map_or(Ok(()), Arrivals::hear).map_err(Error::System)?;
        self.take_arrivals()
    }

    /// Takes what has come of the image, for those who read it and those who will.
    fn take_arrivals(&mut self) -> Result<(), Error> {
        let Some(mut arrivals) = self.arrivals.take() else { return Ok(()) };
        let mut is_whole = false;
        while let Some(arrival) = arrivals.next()? {
            match arrival {
                Arrival::Piece(name, piece) => self.deliver(&name, piece),
                Arrival::Ends(name) => self.complete(&name),
                Arrival::Failed(error) => return Err(error),
                Arrival::Whole => {
                    is_whole = true;
                    self.holds_memory = false;
                    self.progress.finished(self.counters);
                }
            }
        }
        if !is_whole {
            self.arrivals = Some(arrivals);
        }
        Ok(())
    }

    /// Gives a piece to all who read its file: once, if it can be read only once.
    fn deliver(&mut self, name: &FileName, piece: Piece) {
        let mut readers: Vec<_> = readers(&mut self.outflows, &mut self.clients, name).collect();
        let is_read = !readers.is_empty();
        let mut left_out = Vec::new();
        for (number, file) in readers.iter_mut().skip(1) {
            match piece.again() {
                Some(again) => file.pieces.push_back(again),
                None => left_out.push(*number),
            }
        }
        let rest = match (readers.first_mut(), piece.again()) {
            (None, _) => Some(piece),
            (Some((_, file)), again) => {
                file.pieces.push_back(piece);
                again
            }
        };
        self.store.push(name, rest, is_read);
        for number in left_out {
            self.give_up(number, Error::Gone(name.clone()));
        }
    }

    fn complete(&mut self, name: &FileName) {
        self.store.complete(name);
        readers(&mut self.outflows, &mut self.clients, name)
            .for_each(|(_, file)| file.complete = true);
    }
}

/// The rules in a file that are CRIU's network lock and nothing else.
fn lock_in(file: &Handed) -> Option<&[u8]> {
    let rules = match (file.pieces.front(), file.pieces.len()) {
        (Some(Piece::Kept(rules)), 1) if file.complete => rules,
        _ => return None,
    };
    (is_nftables(file.name.as_str()) && is_only_network_lock(rules)).then_some(rules)
}

/// Those who read a file that is not complete, by the numbers of their clients.
fn readers<'a>(
    outflows: &'a mut [Outflow],
    clients: &'a mut [Client],
    name: &'a FileName,
) -> impl Iterator<Item = (usize, &'a mut Handed)> {
    let sent = outflows.iter_mut().map(|outflow| (outflow.client, &mut outflow.file));
    let promised =
        clients.iter_mut().filter_map(|client| Some((client.number, client.promised.as_mut()?)));
    sent.chain(promised).filter(move |(_, file)| file.name == *name && !file.complete)
}
