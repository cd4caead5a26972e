//! What the command line names: descriptors, and the filters that get them.

use crate::chain::Chain;
use crate::error::Error;
use crate::{Action, Args};
use cli::{Descriptors, Failure, Progress, UsageError};
use pipe_io::inherit::Direction;
use pipe_io::process;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use supervise::family::Role;
use supervise::filters::{lending, numbers};
use supervise::shell::find_filter;

/// All that the filters are to be given.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) action: Action,
    images_dir: PathBuf,
    external: Vec<(String, OwnedFd)>,
    pub(crate) shards: Vec<OwnedFd>,
    pub(crate) progress: Progress,
    remaps: Vec<String>,
}

impl Action {
    /// The filter on CRIU's side, or the directory's.
    pub(crate) fn filter(self) -> Role {
        match self {
            Action::Capture => Role::Capture,
            Action::Serve => Role::Serve,
            Action::Extract => Role::Extract,
        }
    }

    /// The filter on the side of the shards, where there are several.
    pub(crate) fn partner(self) -> Role {
        match self {
            Action::Capture => Role::Split,
            Action::Serve | Action::Extract => Role::Merge,
        }
    }
}

/// Takes over what the command line names.
pub(crate) fn prepare(args: Args) -> Result<Parts, Failure<Error>> {
    if args.action != Action::Serve && !args.tcp_listen_remap.is_empty() {
        let message = "--tcp-listen-remap goes with serve only";
        return Err(UsageError::Options(message).into());
    }
    let (shards, external, default) = match args.action {
        Action::Capture => (Direction::Output, Direction::Input, 1),
        Action::Serve | Action::Extract => (Direction::Input, Direction::Output, 0),
    };
    let numbers: Vec<_> = match args.shard_fds.as_slice() {
        [] => vec![default],
        fds => fds.iter().map(|fd| fd.0).collect(),
    };
    let mut descriptors = Descriptors::default();
    let shards = descriptors.take_shards(numbers, shards)?;
    let external = descriptors.take_external(args.ext_file_fds, external)?;
    let progress = Progress::open(args.progress_fd.0, &mut descriptors)?;
    for role in [args.action.filter(), args.action.partner()] {
        find_filter(&role.to_string()).ok_or(Failure::Failed(Error::NoFilter(role)))?;
    }
    fs::create_dir_all(&args.images_dir)
        .map_err(|error| Failure::Failed(Error::Directory(args.images_dir.clone(), error)))?;
    let shards = shards.into_iter().map(|shard| to_lend(shard.endpoint));
    let external = external.into_iter();
    let external = external.map(|(name, _, end)| Ok((name.as_str().to_owned(), to_lend(end)?)));
    let system = |error| Failure::Failed(Error::System(error));
    Ok(Parts {
        action: args.action,
        images_dir: args.images_dir,
        external: external.collect::<io::Result<_>>().map_err(system)?,
        shards: shards.collect::<io::Result<_>>().map_err(system)?,
        progress,
        remaps: args.tcp_listen_remap,
    })
}

/// The descriptor under a number that a filter can be given it by: its standard ones are its ends
/// of the chain.
pub(crate) fn to_lend(fd: impl Into<OwnedFd>) -> io::Result<OwnedFd> {
    let fd = fd.into();
    match fd.as_raw_fd() {
        // The new number is above these.
        0..=2 => fd.try_clone(),
        _ => Ok(fd),
    }
}

impl Parts {
    /// Runs the filters, and returns how this process is to end.
    pub(crate) fn run(mut self) -> Result<ExitCode, Error> {
        match self.shards.pop() {
            Some(shard) if self.shards.is_empty() => match self.become_filter(shard)? {},
            last => {
                self.shards.extend(last);
                Chain::start(self)?.run()
            }
        }
    }

    /// One shard is a stream: the filter alone does it all. Returns only if it cannot.
    fn become_filter(self, shard: OwnedFd) -> Result<Infallible, Error> {
        let role = self.action.filter();
        let progress = self.progress.try_clone().map_err(Error::System)?;
        let mut filter = self.filter(&progress)?;
        match self.action {
            Action::Capture => filter.stdout(shard),
            Action::Serve | Action::Extract => filter.stdin(shard),
        };
        let lent: Vec<_> = self.external().chain([&progress]).collect();
        lending(&lent, || Err(filter.exec())).map_err(|error| Error::NotStarted(role, error))
    }

    /// The filter on CRIU's side, which writes its progress lines to this descriptor. Its standard
    /// input and output are nothing yet.
    pub(crate) fn filter(&self, progress: &OwnedFd) -> Result<Command, Error> {
        let mut filter = command(self.action.filter(), progress)?;
        filter.arg("--images-dir").arg(&self.images_dir);
        for (name, fd) in &self.external {
            filter.arg("--ext-file-fds").arg(format!("{name}:{}", fd.as_raw_fd()));
        }
        for remap in &self.remaps {
            filter.arg("--tcp-listen-remap").arg(remap);
        }
        Ok(filter)
    }

    /// The filter on the side of the shards, likewise.
    pub(crate) fn partner(&self, progress: &OwnedFd) -> Result<Command, Error> {
        let mut partner = command(self.action.partner(), progress)?;
        partner.arg("--shard-fds").arg(numbers(&self.shards));
        Ok(partner)
    }

    /// What the filter on CRIU's side must inherit besides.
    pub(crate) fn external(&self) -> impl Iterator<Item = &OwnedFd> {
        self.external.iter().map(|(_, fd)| fd)
    }
}

fn command(role: Role, progress: &OwnedFd) -> Result<Command, Error> {
    let mut command = Command::new(find_filter(&role.to_string()).ok_or(Error::NoFilter(role))?);
    command.arg("--progress-fd").arg(progress.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    process::as_our_caller(&mut command, &[0, 1]);
    Ok(command)
}
