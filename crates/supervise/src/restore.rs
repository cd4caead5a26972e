//! A restore: nothing comes to life of an image that is not whole.
//!
//! ```text
//! COMMAND | image-serve                      or COMMANDs | shard-merge | image-serve
//! criu-migrate -t PID HOST | image-serve     at another host, behind image-combine if it comes
//!                                            in rounds
//! criu restore --stream                      begins when image-serve says so, and asks the gate
//! ```
//!
//! This process keeps the ends of the pipes that the COMMANDs write to until they have succeeded:
//! an image whose COMMAND fails has no end, and `image-serve` does not serve one.

mod held;
mod image;
mod late;
mod peer;
mod report;

use crate::criu_options::CriuOptions;
use crate::filters;
use crate::front::{self, LastWords, Outcome};
use crate::ids;
use crate::link::meeting::Guest;
use crate::scratch::Scratch;
use crate::shell::{self, Shell};
use crate::tell::Voice;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Where CRIU is to leave its logs and statistics.
    pub logs: Option<PathBuf>,
    /// How many COMMANDs or connections there are.
    pub shards: NonZeroUsize,
    /// Where the image comes from.
    pub source: Source,
    /// Whether it is an image and its increments, one after the other.
    pub combine: bool,
    /// Whether the image is unpacked, and restored from the directory.
    pub by_directory: bool,
    /// Whether files that go with the tree are put back.
    pub files: bool,
    /// Whether our standard descriptors take the place of pipes that the root had as its own.
    pub stdio: bool,
    /// Whether to stay until the tree ends.
    pub wait: bool,
    /// How long it may take until the tree runs.
    pub time_limit: Duration,
    /// What CRIU is told besides.
    pub criu_options: CriuOptions,
    /// The CRIU to use: a name, or a path.
    pub criu: String,
    /// Where the last line is to be given as JSON too.
    pub json: Option<OwnedFd>,
}

/// Where an image comes from.
#[derive(Debug)]
pub enum Source {
    /// Our own standard input.
    Stdin,
    /// The standard output of a COMMAND, or of one for each shard.
    Command(String),
    /// Another host, which holds the tree until it runs here.
    Link(Arrival),
    /// A regular file, out of which memory comes when it is touched.
    Lazy(OwnedFd),
}

/// The connections of a link that have arrived.
#[derive(Debug)]
pub struct Arrival {
    /// What the first one reads. What it writes is our own standard output.
    pub first: OwnedFd,
    /// The others.
    pub others: Vec<Guest>,
}

/// Why nothing was begun.
#[derive(Debug)]
pub enum Refusal {
    /// A program that is needed is not there.
    NoProgram(String),
    /// CRIU cannot leave its logs there.
    NoDirectory(PathBuf),
    /// There is no place for a socket, or no second process.
    System(io::Error),
}

/// Carries out a plan, and returns how this process is to end.
///
/// # Errors
///
/// When nothing was begun.
pub fn run(plan: Plan, voice: Voice) -> Result<ExitCode, Refusal> {
    let mut filters = vec![if plan.by_directory { "image-extract" } else { "image-serve" }];
    if plan.combine {
        filters.push("image-combine");
    }
    if plan.shards.get() > 1 {
        filters.push("shard-merge");
    }
    if let Some(name) = filters::missing(&filters) {
        return Err(Refusal::NoProgram(name.into()));
    }
    let criu = shell::find_program(&plan.criu);
    let criu = criu.ok_or_else(|| Refusal::NoProgram(plan.criu.clone()))?;
    if let Some(directory) = plan.logs.iter().find(|it| !it.is_dir()) {
        return Err(Refusal::NoDirectory(directory.clone()));
    }
    let shell = Shell::find();
    if matches!(plan.source, Source::Command(_)) && shell == Shell::Sh {
        voice.say("there is no bash: sh runs the command, and only its last stage counts");
    }
    let scratch = Scratch::new().map_err(Refusal::System)?;
    let undo = scratch.clone();
    ids::stay_out_of_the_way();
    let failed = "nothing is restored, unless CRIU was about to let the tree run";
    let last_words = LastWords {
        done: "restored",
        failed,
        in_doubt: failed,
        over_link: matches!(plan.source, Source::Link(_)),
    };
    front::in_two_processes(voice, scratch, last_words, |reins, scratch| -> Outcome {
        held::Held::new(plan, criu, shell, voice, reins, scratch).run()
    })
    .map_err(|error| {
        undo.remove();
        Refusal::System(error)
    })
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoProgram(name) => write!(f, "{name}: not found"),
            Refusal::NoDirectory(path) => write!(f, "{}: not a directory", path.display()),
            Refusal::System(error) => f.write_str(&pipe_io::reason(error)),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Refusal::System(error) => Some(error),
            _ => None,
        }
    }
}
