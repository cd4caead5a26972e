//! `image-combine` makes one whole image of an image and its increments.

mod chain;
mod error;
mod hold;
mod image;
mod run;
mod view;
mod write;

use clap::Parser;
use cli::CommonArgs;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "image-combine";

/// Make one whole image of an image and its increments, and write it to stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "image-combine [OPTION]... BASE [INCREMENT]... > IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  image-combine monday.img tuesday.img wednesday.img | image-serve -D d\n\n\
                  Manual: image-combine(1), criu-stream-utils(7)"
)]
struct Args {
    /// Combine these images, the oldest first
    ///
    /// Regular files, pipes or FIFOs; - is stdin. One may hold several
    /// images, one after the other.
    #[arg(value_name = "IMAGE", required = true, verbatim_doc_comment)]
    images: Vec<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| run::run(args))
}
