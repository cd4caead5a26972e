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
    after_help = "Example:\n  criu-sock-capture -D d | shard-split -s 10,11 \
                  10> >(zstd > 0.zst) 11> >(zstd > 1.zst)\n\nSee shard-split(1)."
)]
struct Args {
    /// Write the shards to these descriptors
    #[arg(
        short,
        long,
        value_name = "FD",
        value_delimiter = ',',
        default_value = "1",
        hide_default_value = true
    )]
    shard_fds: Vec<Fd>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| split::run(args))
}
