//! What the filters cost: `make bench`, and `make bench-plot` for the figures.
//!
//! A stand-in for CRIU dumps memory into the filters, as CRIU does, or restores from them; the
//! same work is then done with nothing between the two ends, with `cat` between them, and with
//! another streamer. Contenders take turns for several rounds, and medians count.
//! docs/performance.md explains the method and holds the results.
//!
//! Producers, readers and consumers are threads of this process; whatever is measured is a
//! process of its own. So the kernel's account of child processes is an account of the filters.

mod apart;
mod cases;
mod cleanup;
mod client;
mod consumer;
mod criu;
mod dump;
mod feed;
mod hog;
mod image;
mod machine;
mod markdown;
mod measure;
mod memory;
mod network;
mod options;
mod pages;
mod pipes;
mod plot;
mod process;
mod producer;
mod reader;
mod report;
mod restore;
mod results;
mod scratch;
mod server;
mod setting;
mod streamer;

use std::process::ExitCode;

/// What went wrong, in words for whoever runs the benchmark.
type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
Usage: bench              measure, print tables, write results.json
       bench list         name the cases
       bench plot [DIR]   draw figures from results.json, and fill the tables of
                          performance.md, both in DIR (docs unless said)

Environment:
  BENCH_MB=N        MiB of memory to dump and to restore (2048)
  BENCH_ROUNDS=N    rounds of each case (5)
  BENCH_ONLY=A,B    only cases whose names contain one of these
  BENCH_TUNED=0|1   leave fs.pipe-max-size alone | measure with 4 MiB only; by
                    default root measures with 1 MiB and with 4 MiB, and puts
                    the old value back
  BENCH_CRIU_MB=N   MiB for the real CRIU (3072)
  BENCH_OUT=DIR     where results.json is (target/bench)
  BASE=DIR          filters of another version, which do the same work in the
                    same run
  PEER=PROGRAM      a criu-image-streamer to compare with
  CRIU=PROGRAM      the CRIU to use";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => measure::run(),
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        ["list"] => {
            cases::CASES.iter().for_each(|case| println!("{:18} {}", case.name, case.title));
            Ok(ExitCode::SUCCESS)
        }
        ["plot"] => plot::run("docs".as_ref()),
        ["plot", directory] => plot::run(directory.as_ref()),
        // Where pipes are small; started by `apart` only.
        ["round", case, contender] => apart::round(case, contender),
        // What the real CRIU dumps; started by `criu` only.
        ["hog", directory, megabytes] => hog::run(directory.as_ref(), megabytes),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    cleanup::undo_all();
    outcome.unwrap_or_else(|error| {
        eprintln!("bench: {error}");
        ExitCode::FAILURE
    })
}
