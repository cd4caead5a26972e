//! `criu-page-capture` turns a dump through CRIU's page server into one image stream.

mod around;
mod capture;
mod entrance;
mod error;
mod files;
mod memory;
mod run;
mod wire;

use clap::Parser;
use cli::CommonArgs;
use entrance::Address;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use wire_format::ImageId;

const NAME: &str = "criu-page-capture";

/// Turn a CRIU dump through the page server into one image stream on stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "criu-page-capture -D DIR [OPTION]... [-- COMMAND...] > IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  criu-page-capture -D d -- criu dump --page-server --ps-socket {} -D d -t PID \\\n    \
                  | zstd > image.zst\n\n\
                  Manual: criu-page-capture(1), criu-stream-utils(7)"
)]
struct Args {
    /// Take the small files from DIR
    ///
    /// It is CRIU's images directory, and has no files of another image.
    #[arg(short = 'D', long, value_name = "DIR", verbatim_doc_comment)]
    images_dir: PathBuf,

    /// Take the memory from a TCP connection
    ///
    /// ADDRESS is a port of 127.0.0.1, or a numeric address, colon and port.
    #[arg(
        long,
        value_name = "ADDRESS",
        help_heading = "Memory",
        conflicts_with = "socket",
        verbatim_doc_comment
    )]
    listen: Option<Address>,

    /// Take the memory from a connection to a UNIX socket
    #[arg(long, value_name = "PATH", help_heading = "Memory")]
    socket: Option<PathBuf>,

    /// Give the image this id [a random one]
    #[arg(long, value_name = "ID")]
    image_id: Option<ImageId>,

    /// Write an increment of this image
    ///
    /// Memory that has not changed since is left out, if CRIU is told to
    /// (--track-mem, --prev-images-dir).
    #[arg(long, value_name = "IMAGE-ID", verbatim_doc_comment)]
    parent: Option<ImageId>,

    /// End the stream when CRIU has written its files
    ///
    /// Do not wait for COMMAND to end, so that CRIU's action script can wait
    /// until the image is stored.
    #[arg(long, verbatim_doc_comment)]
    end_at_inventory: bool,

    #[command(flatten)]
    common: CommonArgs,

    /// Start this when CRIU may connect; wait for it
    ///
    /// Its failure is the filter's, and its exit status too. In its words {}
    /// becomes the number of the port or, without --listen and --socket, that
    /// of a descriptor for CRIU's option --ps-socket.
    #[arg(last = true, value_name = "COMMAND", help_heading = "Command", verbatim_doc_comment)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| run::run(args))
}
