//! `image-serve` gives an image stream to `criu restore`.

mod arrivals;
mod error;
mod lazy;
mod load;
mod network_lock;
mod outflow;
mod pause;
mod remap;
mod restore;
mod serve;
mod store;

use clap::Parser;
use cli::{CommandArgs, CommonArgs, ExternalFile};
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
    override_usage = "image-serve [-D DIR] [OPTION]... [-- COMMAND...] < IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  zstd -dc image.zst | image-serve -- criu restore --stream -d\n\n\
                  Manual: image-serve(1), criu-stream-utils(7)"
)]
struct Args {
    /// Listen for `criu restore --stream -D DIR` [.]
    ///
    /// The socket is DIR/streamer-serve.sock. DIR must exist.
    #[arg(
        short = 'D',
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true,
        verbatim_doc_comment
    )]
    images_dir: PathBuf,

    /// Write the file NAME to descriptor FD
    ///
    /// It is written while it arrives, and CRIU does not get it. Takes a list
    /// with commas, and may be repeated.
    #[arg(
        short,
        long = "ext-file-fds",
        value_name = "NAME:FD",
        value_delimiter = ',',
        verbatim_doc_comment
    )]
    external: Vec<ExternalFile>,

    /// Serve N connections, then end [1]
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        help_heading = "Serving"
    )]
    clients: NonZeroUsize,

    /// Move what listens on TCP port OLD to NEW
    ///
    /// Takes a list with commas, and may be repeated.
    #[arg(
        long,
        value_name = "OLD:NEW",
        value_delimiter = ',',
        help_heading = "Serving",
        verbatim_doc_comment
    )]
    tcp_listen_remap: Vec<remap::PortMove>,

    /// Hold it in pipe, memory or auto [auto]
    ///
    /// auto: in pipes, and in memory when pipes run out.
    #[arg(
        long,
        value_name = "WHERE",
        value_enum,
        default_value = "auto",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "Serving",
        verbatim_doc_comment
    )]
    store: store::Choice,

    #[command(flatten)]
    lazy: lazy::LazyArgs,

    #[command(flatten)]
    command: CommandArgs,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| serve::run(args))
}
