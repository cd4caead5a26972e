//! `criu-image-streamer` is the command line of criu-image-streamer 1.0, and has the filters do
//! the work.

mod chain;
mod error;
mod parts;

use clap::{Parser, ValueEnum};
use cli::{ExternalFile, Failure, Fd};
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "criu-image-streamer";

/// Chain the filters of criu-stream-utils behind the command line of
/// criu-image-streamer 1.0.
///
/// The filters are looked for beside this command, then in PATH. Options may
/// stand before or after the command.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version = concat!(env!("CARGO_PKG_VERSION"), " (criu-stream-utils)"),
    about,
    verbatim_doc_comment,
    override_usage = "criu-image-streamer [OPTION]... -D DIR capture|serve|extract",
    after_help = "Example:\n  criu-image-streamer -D d capture | zstd > image.zst &\n  \
                  criu dump --stream -D d -t PID        # after the line socket-init\n\n\
                  Manual: criu-image-streamer(1), criu-stream-utils(7)"
)]
struct Args {
    /// What to do
    #[arg(value_enum, value_name = "COMMAND", help_heading = "Command")]
    action: Action,

    /// Meet CRIU in DIR, which is made if need be
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: PathBuf,

    /// Add, or take out, these external files
    #[arg(short, long, value_name = "NAME:FD", value_delimiter = ',')]
    ext_file_fds: Vec<ExternalFile>,

    /// Write progress lines to FD [2]
    #[arg(short, long, value_name = "FD", default_value = "2", hide_default_value = true)]
    progress_fd: Fd,

    /// Write or read these shards [1, else 0]
    ///
    /// Takes a list with commas, and may be repeated.
    #[arg(short, long, value_name = "FD", value_delimiter = ',', verbatim_doc_comment)]
    shard_fds: Vec<Fd>,

    /// serve: move a listener on TCP port OLD
    #[arg(long, value_name = "OLD:NEW", value_delimiter = ',')]
    tcp_listen_remap: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// A dump into shards: criu-sock-capture | shard-split
    Capture,
    /// A restore from shards: shard-merge | image-serve
    Serve,
    /// Shards into a directory: shard-merge | image-extract
    Extract,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| parts::prepare(args)?.run().map_err(Failure::Failed))
}
