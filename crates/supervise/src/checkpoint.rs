//! A checkpoint: the tree is frozen until its image is safe, and only then let go.
//!
//! ```text
//! criu-sock-capture --end-at-inventory | COMMAND                    one command
//! criu-sock-capture --end-at-inventory | shard-split | COMMANDs     one for each shard
//! criu-sock-capture --end-at-inventory | criu-migrate --receive     at another host
//! criu dump --stream                                                waits at the gate
//! ```
//!
//! For an image that builds on an earlier one, `criu-page-capture` takes the place of
//! `criu-sock-capture`, and CRIU's page server that of `--stream`. A migration can send such images
//! while the tree runs, one after the other by `criu pre-dump`, before the dump that freezes it.
//!
//! The gate says yes when all of the first line have succeeded, and the image was read back if
//! that is asked for; in a migration, when the tree runs at the other host. Whatever fails before
//! makes it say no: CRIU lets the tree run on then, and all others are ended.

mod held;
mod pages;
mod peer;
mod report;
mod rounds;
mod series;
mod tracking;

pub use pages::tracks_memory;

use crate::criu_options::CriuOptions;
use crate::filters;
use crate::front::{self, LastWords, Outcome};
use crate::link::{Connect, Route};
use crate::scratch::Scratch;
use crate::shell::{self, Shell};
use crate::tell::Voice;
use crate::tree::Tree;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// The root of the tree.
    pub tree: Pid,
    /// Whether it is to run on afterwards.
    pub leave_running: bool,
    /// Where CRIU is to leave its logs and statistics.
    pub logs: Option<PathBuf>,
    /// How many COMMANDs or connections there are.
    pub shards: NonZeroUsize,
    /// Where the image goes.
    pub destination: Destination,
    /// Where it is noted what an image can build on, if it is to be an increment.
    pub increments: Option<PathBuf>,
    /// How often, at most, what has changed is sent to another host while the tree runs.
    pub rounds: Option<NonZeroU32>,
    /// What writes it to standard output again, if it is to be read back.
    pub verify: Option<String>,
    /// Files and directories that go with the tree, by their absolute paths.
    pub files: Vec<PathBuf>,
    /// How long all may take.
    pub time_limit: Duration,
    /// What CRIU is told besides.
    pub criu_options: CriuOptions,
    /// The CRIU to use: a name, or a path.
    pub criu: String,
    /// Where the last line is to be given as JSON too.
    pub json: Option<OwnedFd>,
}

/// Where an image goes.
#[derive(Debug)]
pub enum Destination {
    /// Into the standard input of a COMMAND, which stores it, or of one for each shard.
    Command(String),
    /// To another host, which restores the tree.
    Host(Route),
}

impl Destination {
    /// What the process in front says if the one that holds the tree has died.
    fn last_words(&self) -> LastWords {
        const STORED: &str = "the tree runs on, unless the image is safe";

        match self {
            Destination::Command(_) => LastWords {
                done: "done: the image is safe, and the tree was let go",
                failed: STORED,
                in_doubt: STORED,
                over_link: false,
            },
            Destination::Host(_) => LastWords {
                done: "done: the tree runs at the other host, and was let go here",
                failed: "the tree runs on here, and not at the other host",
                in_doubt: "the tree runs on here, and perhaps at the other host too: look there",
                over_link: false,
            },
        }
    }
}

/// Why nothing was begun.
#[derive(Debug)]
pub enum Refusal {
    /// There is no such process.
    NoProcess(Pid),
    /// It is another user's.
    NotOurs(Pid),
    /// A program that is needed is not there.
    NoProgram(String),
    /// CRIU cannot leave its logs there.
    NoDirectory(PathBuf),
    /// Another checkpoint has this directory.
    InUse(PathBuf),
    /// Another checkpoint has what the kernel tells of this tree.
    Tracked(Pid),
    /// It cannot be worked in this directory.
    Path(PathBuf, io::Error),
    /// There is no place for a socket, or no second process.
    System(io::Error),
}

/// Carries out a plan, and returns how this process is to end.
///
/// # Errors
///
/// When nothing was begun: the tree was not touched.
pub fn run(plan: Plan, voice: Voice) -> Result<ExitCode, Refusal> {
    let tree = find(plan.tree)?;
    let is_streamed = plan.increments.is_none() && plan.rounds.is_none();
    let mut filters = vec![if is_streamed { "criu-sock-capture" } else { "criu-page-capture" }];
    if plan.shards.get() > 1 {
        filters.push("shard-split");
    }
    if plan.verify.is_some() {
        filters.extend(["shard-merge", "image-extract"]);
    }
    if let Some(name) = filters::missing(&filters) {
        return Err(Refusal::NoProgram(name.into()));
    }
    let criu = shell::find_program(&plan.criu);
    let criu = criu.ok_or_else(|| Refusal::NoProgram(plan.criu.clone()))?;
    let mut directories = plan.logs.iter().chain(&plan.increments);
    if let Some(directory) = directories.find(|it| !it.is_dir()) {
        return Err(Refusal::NoDirectory(directory.clone()));
    }
    let shell = Shell::find();
    let has_command = match &plan.destination {
        Destination::Command(_) => true,
        Destination::Host(route) => matches!(route.connect, Connect::Command(_)),
    };
    if has_command && shell == Shell::Sh {
        voice.say("there is no bash: sh runs the command, and only its last stage counts");
    }
    let scratch = Scratch::new().map_err(Refusal::System)?;
    let undo = scratch.clone();
    let last_words = plan.destination.last_words();
    front::in_two_processes(voice, scratch, last_words, |reins, scratch| {
        let undo = scratch.clone();
        let held = held::Held::new(plan, tree, criu, shell, voice, reins, scratch);
        held.map_or_else(
            |error| {
                undo.remove();
                voice.last(format_args!("FAILED: {error}; process {} runs on", tree.root()));
                Outcome::Status(1)
            },
            held::Held::run,
        )
    })
    .map_err(|error| {
        undo.remove();
        Refusal::System(error)
    })
}

fn find(root: Pid) -> Result<Tree, Refusal> {
    match kill(root, None) {
        Err(Errno::EPERM) => Err(Refusal::NotOurs(root)),
        Err(_) => Err(Refusal::NoProcess(root)),
        Ok(()) => Tree::of(root).ok_or(Refusal::NoProcess(root)),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoProcess(pid) => write!(f, "process {pid}: not there"),
            Refusal::NotOurs(pid) => write!(f, "process {pid}: another user's"),
            Refusal::NoProgram(name) => write!(f, "{name}: not found"),
            Refusal::NoDirectory(path) => write!(f, "{}: not a directory", path.display()),
            Refusal::InUse(path) => {
                write!(f, "{}: another checkpoint is making an image there", path.display())
            }
            Refusal::Tracked(pid) => {
                write!(f, "process {pid}: another checkpoint is making an increment of it")
            }
            Refusal::Path(path, error) => {
                write!(f, "{}: {}", path.display(), pipe_io::reason(error))
            }
            Refusal::System(error) => f.write_str(&pipe_io::reason(error)),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Refusal::Path(_, error) | Refusal::System(error) => Some(error),
            _ => None,
        }
    }
}
