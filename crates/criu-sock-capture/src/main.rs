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

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| capture::run(args))
}
