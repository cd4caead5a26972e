//! `criu-migrate` moves a process tree to another host.

mod receive;
mod send;
mod usage;

use clap::Parser;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::process::ExitCode;
use supervise::gate;
use supervise::link::Appointment;

const NAME: &str = "criu-migrate";

/// Move a process tree to HOST, through ssh.
///
/// It is dumped here and restored there, and killed here only when it runs
/// there. If anything fails, it runs on here.
///
/// COMMAND is used in the place of ssh: it connects its standard input and
/// output with those of the command in $RECEIVE, run over there.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    verbatim_doc_comment,
    override_usage = "criu-migrate -t PID [OPTION]... [CRIU OPTION]... HOST\n       \
                      criu-migrate -t PID [OPTION]... [CRIU OPTION]... -- COMMAND\n       \
                      criu-migrate --receive [OPTION]... [CRIU OPTION]...",
    next_help_heading = "Tree",
    after_help = "All other options are for `criu dump` or, with --receive, `criu restore`.\n\n\
                  Example:\n  criu-migrate -t 1234 -n 4 --network-lock skip host\n\n\
                  Manual: criu-migrate(1), criu-stream-utils(7)"
)]
struct Args {
    /// Move the tree under process PID
    #[arg(
        short,
        long,
        value_name = "PID",
        value_parser = clap::value_parser!(i32).range(1..),
        required_unless_present = "receive"
    )]
    tree: Option<i32>,

    /// Take the file or directory PATH along
    ///
    /// May be repeated.
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    fs: Vec<PathBuf>,

    /// Send memory before, while the tree runs
    ///
    /// Then what has changed meanwhile, again and again, at most ROUNDS times
    /// in all: 8 unless given. The kernel must tell which pages have changed.
    #[arg(
        long,
        value_name = "ROUNDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "8",
        conflicts_with = "fs",
        verbatim_doc_comment
    )]
    pre_copy: Option<NonZeroU32>,

    /// Give these options to criu restore there
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    restore_options: String,

    /// Give up, and let it run on here [3600]
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3600",
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    time_limit: u32,

    /// Use N connections at once
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        help_heading = "Link"
    )]
    shards: NonZeroU16,

    /// Give WORD to ssh, before the host
    ///
    /// May be repeated.
    #[arg(
        long,
        value_name = "WORD",
        allow_hyphen_values = true,
        help_heading = "Link",
        verbatim_doc_comment
    )]
    ssh_option: Vec<String>,

    /// Be the other end
    #[arg(
        long,
        help_heading = "Link",
        conflicts_with_all = ["tree", "fs", "restore_options", "shards", "ssh_option", "json", "json_fd"]
    )]
    receive: bool,

    /// Be one of several, as $RECEIVE says
    // `requires` alone is not held to where what is required conflicts with what is given.
    #[arg(
        long,
        value_name = "TOKEN:INDEX:COUNT",
        requires = "receive",
        conflicts_with = "tree",
        help_heading = "Link"
    )]
    connection: Option<Appointment>,

    /// With --receive: restore from a directory
    ///
    /// For what CRIU can restore from no stream. The other end asks for it
    /// by --restore-options --directory.
    #[arg(
        long,
        requires = "receive",
        conflicts_with = "tree",
        help_heading = "Link",
        verbatim_doc_comment
    )]
    directory: bool,

    /// Have CRIU leave its logs in DIR [none stay]
    #[arg(short = 'D', long, value_name = "DIR", help_heading = "Reporting")]
    images_dir: Option<PathBuf>,

    /// Write the result as a line of JSON to stdout
    #[arg(long, help_heading = "Reporting", conflicts_with = "json_fd")]
    json: bool,

    /// Write that line to FD
    #[arg(long, value_name = "FD", help_heading = "Reporting")]
    json_fd: Option<cli::Fd>,

    /// Say only what goes wrong
    #[arg(short, long, help_heading = "Reporting", conflicts_with = "verbose")]
    quiet: bool,

    /// Say more on stderr
    #[arg(short, long, help_heading = "Reporting")]
    verbose: bool,
}

fn main() -> ExitCode {
    if let Some(status) = gate::answer() {
        return status;
    }
    let (args, split) = match usage::parse() {
        Ok(parsed) => parsed,
        Err(status) => return status,
    };
    match args.receive {
        true => receive::run(args, split),
        false => send::run(args, split),
    }
}
