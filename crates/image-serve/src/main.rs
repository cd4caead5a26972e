//! `image-serve` gives an image stream to `criu restore`.

mod error;
mod load;
mod outflow;
mod remap;
mod restore;
mod serve;
mod store;

use clap::Parser;
use cli::{CommonArgs, ExternalFile};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "image-serve";

/// Give the image stream on stdin to `criu restore`.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    after_help = "Example:\n  zstd -d < image.zst | image-serve -D d &\n  \
                  criu restore --stream -D d\n\nSee image-serve(1)."
)]
struct Args {
    /// Make the socket for `criu restore --images-dir DIR` in this directory
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: PathBuf,

    /// Write the file NAME to descriptor FD, while it arrives
    #[arg(short, long = "ext-file-fds", value_name = "NAME:FD", value_delimiter = ',')]
    external: Vec<ExternalFile>,

    /// Serve so many connections, and end when the last has gone
    #[arg(long, value_name = "N", default_value = "1")]
    clients: NonZeroUsize,

    /// What listened on TCP port OLD is to listen on NEW
    #[arg(long, value_name = "OLD:NEW", value_delimiter = ',')]
    tcp_listen_remap: Vec<remap::PortMove>,

    /// Where to hold the image until CRIU reads it
    #[arg(long, value_name = "WHERE", value_enum, default_value = "auto")]
    store: store::Choice,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| serve::run(args))
}
