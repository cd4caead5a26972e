//! `image-extract` unpacks, lists or verifies an image stream.

mod contents;
mod directory;
mod error;
mod extract;
mod permissions;
mod walk;

use clap::Parser;
use cli::{CommonArgs, ExternalFile, UsageError};
use permissions::Permissions;
use std::path::PathBuf;
use std::process::ExitCode;
use wire_format::{FileName, ImageId};

const NAME: &str = "image-extract";

/// Unpack the image stream on stdin into a directory, or list or verify it.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "image-extract -D DIR [OPTION]... [NAME]... < IMAGE\n       \
                      image-extract {--list [--json] | --verify} < IMAGE",
    next_help_heading = "Image",
    after_help = "Example:\n  zstd -dc image.zst | image-extract -D d && criu restore -D d\n\n\
                  Manual: image-extract(1), criu-stream-utils(7)"
)]
struct Args {
    /// Unpack into DIR, all files or none
    ///
    /// DIR must exist. Files of the same names are replaced.
    #[arg(short = 'D', long, value_name = "DIR", verbatim_doc_comment)]
    images_dir: Option<PathBuf>,

    /// Write the file NAME to descriptor FD
    ///
    /// It is written while it arrives, and not into DIR. Takes a list with
    /// commas, and may be repeated.
    #[arg(
        short,
        long = "ext-file-fds",
        value_name = "NAME:FD",
        value_delimiter = ',',
        verbatim_doc_comment
    )]
    external: Vec<ExternalFile>,

    /// Print size and name of each file
    #[arg(long, help_heading = "Instead", conflicts_with_all = ["verify", "images_dir", "external", "names"])]
    list: bool,

    /// With --list: print JSON
    // `requires` alone is not held to where what is required conflicts with what is given.
    #[arg(
        long,
        help_heading = "Instead",
        requires = "list",
        conflicts_with_all = ["images_dir", "verify"]
    )]
    json: bool,

    /// Only check that the image is complete
    #[arg(long, help_heading = "Instead", conflicts_with_all = ["images_dir", "external", "names"])]
    verify: bool,

    /// Unpack an increment, too, which is not whole
    #[arg(long, hide_short_help = true, conflicts_with_all = ["list", "verify"])]
    increment: bool,

    /// With --verify: refuse an image that has another id
    ///
    /// The id is what criu-checkpoint gives its command as IMAGE_ID.
    // `requires` alone is not held to where what is required conflicts with what is given.
    #[arg(
        long,
        value_name = "ID",
        help_heading = "Instead",
        requires = "verify",
        conflicts_with_all = ["images_dir", "list"],
        verbatim_doc_comment
    )]
    image_id: Option<ImageId>,

    /// Make the files with these permissions [600]
    ///
    /// In octal; 644 to restore a container with a user namespace.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "600",
        hide_default_value = true,
        conflicts_with_all = ["list", "verify"],
        verbatim_doc_comment
    )]
    mode: Permissions,

    /// Flush the files to disk (fsync) before exiting
    #[arg(long, conflicts_with_all = ["list", "verify"], verbatim_doc_comment)]
    sync: bool,

    #[command(flatten)]
    common: CommonArgs,

    /// Unpack only these files
    #[arg(help_heading = "Image", value_name = "NAME", value_parser = parse_name)]
    names: Vec<FileName>,
}

fn parse_name(name: &str) -> Result<FileName, wire_format::NameError> {
    FileName::new(name)
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| match (&args.images_dir, args.list, args.verify) {
        (Some(directory), false, false) => extract::run(directory.clone(), args),
        (None, true, false) => contents::list(&args),
        (None, false, true) => contents::verify(&args),
        _ => Err(UsageError::Options("one of --images-dir, --list and --verify is needed").into()),
    })
}
