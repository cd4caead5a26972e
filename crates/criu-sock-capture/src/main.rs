//! `criu-sock-capture` turns a CRIU dump into one image stream.

mod capture;
mod dump;
mod error;
mod inflow;
mod inventory;

use clap::Parser;
use cli::{CommandArgs, CommonArgs, ExternalFile};
use std::path::PathBuf;
use std::process::ExitCode;
use wire_format::ImageId;

const NAME: &str = "criu-sock-capture";

/// Turn a CRIU dump into one image stream on stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "criu-sock-capture [-D DIR] [OPTION]... [-- COMMAND...] > IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  criu-sock-capture -- criu dump --stream -t PID | zstd > image.zst\n\n\
                  Manual: criu-sock-capture(1), criu-stream-utils(7)"
)]
struct Args {
    /// Listen for `criu dump --stream -D DIR` [.]
    ///
    /// The socket is DIR/streamer-capture.sock. DIR must exist.
    #[arg(
        short = 'D',
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true,
        verbatim_doc_comment
    )]
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

    /// End the stream when inventory.img is complete
    ///
    /// Do not wait for CRIU to hang up, so that its action script can wait
    /// until the image is stored, and only then let the process go.
    #[arg(long, verbatim_doc_comment)]
    end_at_inventory: bool,

    /// Give the image this id [a random one]
    ///
    /// It has 32 hexadecimal digits. No other image may have it.
    #[arg(long, value_name = "ID", verbatim_doc_comment)]
    image_id: Option<ImageId>,

    #[command(flatten)]
    command: CommandArgs,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| capture::run(args))
}
