//! The host that a tree goes to, seen from here.

use crate::cause::Cause;
use crate::family::Role;
use crate::holder::Holder;
use crate::link::word::Word;
use crate::link::{PROTOCOL, Route, Token, relay};
use crate::shell::Shell;
use pipe_io::pipe::Pipe;
use pipe_io::poll;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long connecting may take: a busy host takes ten seconds for a few connections at once.
const ANSWER: Duration = Duration::from_secs(60);
/// How long the other end may take to let the tree run. CRIU takes milliseconds, and if the
/// process there that watches it dies, another one tells within twenty seconds.
const WORD: Duration = Duration::from_secs(30);

/// The other end of a link, and how far it is.
pub(super) struct Peer {
    host: String,
    connections: Vec<Connection>,
    began: Instant,
    stage: Stage,
    there: There,
}

struct Connection {
    role: Role,
    /// Its standard input, as long as there may be anything to say.
    input: Option<File>,
    is_ready: bool,
    /// Whether all of its shard was sent.
    is_through: bool,
    /// Whether it has ended while it was needed.
    is_lost: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not a byte of the image goes before all connections have answered.
    Connecting,
    Sending,
    /// The tree is there, and waits.
    Prepared,
    /// It was told to run, then.
    Going(Instant),
    /// No more can be heard.
    Over,
}

/// Whether the tree runs at the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum There {
    /// It does not, and never will.
    No,
    /// It was told to.
    Perhaps,
    /// It does.
    Runs,
}

impl Peer {
    /// Starts the connections.
    pub(super) fn connect(
        route: &Route,
        shell: &Shell,
        holder: &mut Holder,
    ) -> Result<Peer, Cause> {
        let token = Token::new().map_err(Cause::System)?;
        let mut connections = Vec::new();
        for index in 0..route.connections {
            let role = Role::Connection((route.connections > 1).then_some(index));
            let input = Pipe::new().map_err(Cause::System)?;
            let output = Pipe::new().map_err(Cause::System)?;
            let mut program = route.program(index, &token, shell);
            program.stdin(input.read).stdout(output.write);
            holder.start(role, program)?;
            holder.events.listen(role, output.read).map_err(Cause::System)?;
            let input = Some(File::from(input.write));
            connections.push(Connection {
                role,
                input,
                is_ready: false,
                is_through: false,
                is_lost: false,
            });
        }
        Ok(Peer {
            host: route.to_string(),
            connections,
            began: Instant::now(),
            stage: Stage::Connecting,
            there: There::No,
        })
    }

    /// The other host, in messages.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether the tree runs there.
    pub(super) fn there(&self) -> There {
        self.there
    }

    /// Whether the other end has just said that it waits for the image.
    pub(super) fn begin_if_ready(&mut self) -> bool {
        let is_ready =
            self.stage == Stage::Connecting && self.connections.iter().all(|it| it.is_ready);
        if is_ready {
            self.stage = Stage::Sending;
        }
        is_ready
    }

    /// Whether the image is not there yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.stage == Stage::Connecting
    }

    /// Whether the tree is there, and may be told to run.
    pub(super) fn is_prepared(&self) -> bool {
        self.stage == Stage::Prepared
    }

    /// Whether the tree was told to run there, and nobody knows whether it does.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.stage, Stage::Going(_))
    }

    /// When to look at the clock again.
    pub(super) fn limit(&self) -> Option<Instant> {
        match self.stage {
            Stage::Connecting => Some(self.began + ANSWER),
            Stage::Going(since) => Some(since + WORD),
            Stage::Sending | Stage::Prepared | Stage::Over => None,
        }
    }

    /// Fails when the other end takes too long.
    pub(super) fn look_at_clock(&mut self) -> Result<(), Cause> {
        let is_late = self.limit().is_some_and(|limit| Instant::now() >= limit);
        match self.stage {
            Stage::Connecting if is_late => Err(Cause::NoAnswer(self.host.clone(), ANSWER)),
            Stage::Going(_) if is_late => {
                self.stage = Stage::Over;
                Err(Cause::NoWord(self.host.clone(), WORD))
            }
            _ => Ok(()),
        }
    }

    /// Sends what comes out of this pipe over one of the connections.
    pub(super) fn send(
        &mut self,
        index: Option<usize>,
        image: OwnedFd,
        holder: &mut Holder,
    ) -> Result<(), Cause> {
        let Some(Connection { input: Some(input), .. }) = self.connections.get(index.unwrap_or(0))
        else {
            return Ok(());
        };
        let input = input.try_clone().map_err(Cause::System)?;
        let reports = relay::send(image, input.into()).map_err(Cause::System)?;
        holder.events.listen(Role::Relay(index), reports).map_err(Cause::System)
    }

    /// Lets the tree run there.
    pub(super) fn go(&mut self) -> Result<(), Cause> {
        let Some(Connection { role, input: Some(input), .. }) = self.connections.first() else {
            return Ok(());
        };
        // All that was sent has been read.
        if !poll::is_writable(input).unwrap_or(true) {
            return Ok(());
        }
        let mut input = input;
        if let Err(error) = input.write_all(format!("{}\n", Word::Go).as_bytes()) {
            return Err(Cause::Unlinked(*role, pipe_io::reason(&error)));
        }
        self.stage = Stage::Going(Instant::now());
        self.there = There::Perhaps;
        Ok(())
    }

    /// Hears a line of a connection.
    pub(super) fn hear(&mut self, index: Option<usize>, line: &str) -> Result<(), Cause> {
        let index = index.unwrap_or(0);
        let said = || Cause::Said(self.host.clone(), line.to_owned());
        let Some(connection) = self.connections.get_mut(index) else { return Err(said()) };
        match (Word::parse(line), self.stage) {
            (Some(Word::Ready(theirs)), Stage::Connecting) if !connection.is_ready => {
                connection.is_ready = theirs.protocol == PROTOCOL;
                match connection.is_ready {
                    true => Ok(()),
                    false => Err(Cause::OtherVersion(self.host.clone(), theirs)),
                }
            }
            (Some(Word::Prepared), Stage::Sending) if index == 0 => {
                self.stage = Stage::Prepared;
                Ok(())
            }
            (Some(Word::Restored), Stage::Going(_)) if index == 0 => {
                self.end(There::Runs);
                Ok(())
            }
            // Too late for the tree here, but not to be told.
            (Some(Word::Restored), Stage::Over) if self.there == There::Perhaps => {
                self.there = There::Runs;
                Ok(())
            }
            (Some(Word::Failed(reason)), _) if index == 0 => {
                self.end(There::No);
                Err(Cause::There(self.host.clone(), reason))
            }
            (Some(Word::Unsure(reason)), _) if index == 0 => {
                self.end(self.there);
                Err(Cause::There(self.host.clone(), reason))
            }
            (Some(Word::Failed(reason)), Stage::Connecting) => {
                Err(Cause::There(self.host.clone(), reason))
            }
            (_, Stage::Going(_) | Stage::Over) => Ok(()),
            _ => Err(said()),
        }
    }

    /// Hears what a relay tells.
    pub(super) fn hear_relay(&mut self, index: Option<usize>, line: &str) -> Result<(), Cause> {
        let Some(connection) = self.connections.get_mut(index.unwrap_or(0)) else { return Ok(()) };
        match relay::Report::parse(line) {
            Some(relay::Report::Through) => connection.is_through = true,
            Some(relay::Report::Lost(reason)) => {
                return Err(Cause::Unlinked(connection.role, reason));
            }
            // Whoever writes the image has failed, and is blamed for that.
            Some(relay::Report::Left | relay::Report::Said(_)) | None => {}
        }
        Ok(())
    }

    /// A connection is at its end, or says nothing more. The first one must stay until the tree
    /// runs; the others, until their shards were sent.
    pub(super) fn has_lost(&mut self, index: Option<usize>) -> bool {
        let index = index.unwrap_or(0);
        let Some(connection) = self.connections.get_mut(index) else { return false };
        connection.is_lost |= match index {
            0 => self.stage != Stage::Over,
            _ => self.stage == Stage::Connecting || !connection.is_through,
        };
        if connection.is_lost && index == 0 {
            self.stage = Stage::Over;
        }
        connection.is_lost
    }

    /// Nothing more will be said, nor is to be.
    fn end(&mut self, there: There) {
        (self.stage, self.there) = (Stage::Over, there);
        self.connections.iter_mut().for_each(|it| it.input = None);
    }
}
