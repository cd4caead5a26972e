//! `shard-split` spreads one image stream over several outputs, by what each can take.

mod error;
mod ledger;
mod shard;
mod split;

use clap::Parser;
use cli::{CommonArgs, Fd};
use std::process::ExitCode;

const NAME: &str = "shard-split";

/// Spread the image stream on stdin over several shards, by what each can take.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "shard-split [OPTION]... < IMAGE",
    next_help_heading = "Shards",
    after_help = "Example:\n  criu-sock-capture -D d |\n      \
                  shard-split -s 10,11 10> >(zstd > 0.zst) 11> >(zstd > 1.zst)\n\n\
                  Manual: shard-split(1), criu-stream-utils(7)"
)]
struct Args {
    /// Write the shards to these descriptors
    ///
    /// Instead of to stdout alone. Takes a list with commas, and may be
    /// repeated.
    #[arg(
        short,
        long,
        value_name = "FD",
        value_delimiter = ',',
        default_value = "1",
        hide_default_value = true,
        verbatim_doc_comment
    )]
    shard_fds: Vec<Fd>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| split::run(args))
}
