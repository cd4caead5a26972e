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
    after_help = "Example:\n  criu-sock-capture -D d | zstd > image.zst &\n  \
                  criu dump --stream -D d -t PID\n\nSee criu-sock-capture(1)."
)]
struct Args {
    /// Make the socket for `criu dump --images-dir DIR` in this directory
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: PathBuf,

    /// Weave into the image what comes from descriptor FD, as the file NAME
    #[arg(short, long = "ext-file-fds", value_name = "NAME:FD", value_delimiter = ',')]
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
