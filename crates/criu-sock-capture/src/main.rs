//! `criu-sock-capture` turns a CRIU dump into one image stream.

mod capture;
mod dump;
mod error;
mod inflow;
mod inventory;

use clap::Parser;
use cli::{CommonArgs, ExternalFile};
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "criu-sock-capture";

/// Turn a CRIU dump into one image stream on stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "criu-sock-capture -D DIR [OPTION]... > IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  criu-sock-capture -D d | zstd > image.zst &\n  \
                  criu dump --stream -D d -t PID        # after the line socket-init\n\n\
                  Manual: criu-sock-capture(1), criu-stream-utils(7)"
)]
struct Args {
    /// Listen for `criu dump --stream -D DIR`
    ///
    /// The socket is DIR/streamer-capture.sock. DIR must exist.
    #[arg(short = 'D', long, value_name = "DIR", verbatim_doc_comment)]
    images_dir: PathBuf,

    /// Add a file NAME, read from descriptor FD
    ///
    /// It is read while the dump goes on, to its end. Takes a list with
    /// commas, and may be repeated.
    #[arg(
        short,
        long = "ext-file-fds",
        value_name = "NAME:FD",
        value_delimiter = ',',
        verbatim_doc_comment
    )]
    external: Vec<ExternalFile>,

    /// End the stream at inventory.img, while CRIU still waits to hear that it is safe
    ///
    /// The stream ends when `inventory.img` and every other file that is open, external ones
    /// included, are complete, and not when CRIU hangs up; so an action script can wait at
    /// `post-dump` until the image is stored. A CRIU that does not wait there is an error, and so
    /// is a file that comes after `inventory.img`: here as long as the stream has not ended, and
    /// in CRIU, whose dump then fails, after that.
    #[arg(long)]
    end_at_inventory: bool,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| capture::run(args))
}
