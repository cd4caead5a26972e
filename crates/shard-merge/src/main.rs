//! `shard-merge` puts shards back into one image stream, in order.

mod error;
mod merge;
mod shard;

use clap::Parser;
use cli::{CommonArgs, Fd};
use std::process::ExitCode;

const NAME: &str = "shard-merge";

/// Put shards back into one image stream, in order, and write it to stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "shard-merge [OPTION]... > IMAGE",
    next_help_heading = "Shards",
    after_help = "Example:\n  shard-merge -s 10,11 10< <(zstd -dc 0.zst) 11< <(zstd -dc 1.zst) |\n      \
                  image-serve -D d\n\nManual: shard-merge(1), criu-stream-utils(7)"
)]
struct Args {
    /// Read the shards from these descriptors
    ///
    /// All of them, in any order; instead of from stdin alone. Takes a list
    /// with commas, and may be repeated.
    #[arg(
        short,
        long,
        value_name = "FD",
        value_delimiter = ',',
        default_value = "0",
        hide_default_value = true,
        verbatim_doc_comment
    )]
    shard_fds: Vec<Fd>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| merge::run(args))
}
