//! A process tree that is worth a checkpoint, for the tests with the real CRIU.
//!
//! `victim tree DIR` is a ring of processes (one of them a shell, one with
//! several threads) around which sequence-numbered messages travel in pipes.
//! With every message each process verifies and rewrites a part of its heap.
//! The tree also holds a UNIX socket pair, a deleted open file and a listening
//! TCP socket. Each process writes what it has seen into a status file in DIR,
//! or what it found wrong, which must never happen: see [`status`].
//!
//! `victim change DIR MEGABYTES` changes its memory by a rule, and `victim check DIR` tells whether
//! it is as the rule says. `victim count FILE` only counts, for demonstrations. `victim stamp FILE`
//! stamps its memory, so that an image shows of which moments it is. `victim hold FILE` changes its
//! memory and finds it whole, also after the stand-in for CRIU has restored it. `victim part FILE`
//! changes a twentieth of its memory when it is told to. `victim walk DIR` looks at every page of its
//! memory in every order.
//!
//! `victim turns` prints numbers by several threads, for whoever has started it.
//!
//! All others make themselves leaders of their own session, with standard input,
//! output and error on `/dev/null`: CRIU wants to see nothing of the caller's.

mod change;
mod count;
mod head;
mod heap;
mod hold;
mod member;
mod part;
mod stamp;
mod status;
mod turns;
mod walk;

use std::fs::OpenOptions;
use std::net::TcpStream;
use std::process::ExitCode;

use nix::unistd;

const USAGE: &str = "\
Usage: victim tree DIR [--processes N] [--megabytes N] [--no-tcp] [--undumpable]
       victim change DIR MEGABYTES
       victim check DIR
       victim count FILE
       victim hold FILE MEGABYTES [--tcp PORT] [--resume]
       victim part FILE MEGABYTES
       victim stamp FILE MEGABYTES
       victim turns THREADS LAST
       victim walk DIR MEGABYTES

tree   N processes (4 or more; 4 unless said) that hold N megabytes of changing
       heap together (300 unless said). One of them answers on the loopback
       port named in DIR/port, unless --no-tcp; with --undumpable the last
       one holds a socket that CRIU refuses to dump.
change two processes with so much memory, of which each step changes some pages
check  whether both go on, and all of that memory is as it should be
count  write a number that rises ten times a second to FILE
hold   change all of so much memory, verify it, and write its generation to FILE,
       again and again; with --tcp, send back what comes from that port
part   change one page of twenty of so much memory as often as FILE.go appears
stamp  write a number into all pages of so much memory, one after the other, and
       then to FILE, and begin again with the next number
turns  print the numbers up to LAST, a line each, by so many threads in turn
walk   four processes with so much memory each, a power of two, that read and
       write all of it in order and out of order, and write to DIR what they find";

/// What goes wrong in a process, as it appears in its status file.
type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["tree", directory, options @ ..] => match head::Tree::parse(directory, options) {
            Some(tree) => leave_the_callers_session().and_then(|()| tree.run()),
            None => return usage(),
        },
        ["change", directory, megabytes] => match megabytes.parse() {
            Ok(megabytes) => {
                leave_the_callers_session().and_then(|()| change::run(directory, megabytes))
            }
            Err(_) => return usage(),
        },
        // Started by `change` only.
        ["changer", directory, megabytes] => match megabytes.parse() {
            Ok(megabytes) => change::change(std::path::Path::new(directory), megabytes),
            Err(_) => return usage(),
        },
        ["check", directory] => change::check(directory),
        ["count", file] => leave_the_callers_session().and_then(|()| count::count(file)),
        ["part", file, megabytes] => match megabytes.parse() {
            Ok(megabytes) => leave_the_callers_session().and_then(|()| part::part(file, megabytes)),
            Err(_) => return usage(),
        },
        ["stamp", file, megabytes] => match megabytes.parse() {
            Ok(megabytes) => {
                leave_the_callers_session().and_then(|()| stamp::stamp(file, megabytes))
            }
            Err(_) => return usage(),
        },
        ["hold", file, megabytes, options @ ..] => match hold_options(megabytes, options) {
            Some((megabytes, resume, port)) => match connect(port) {
                Ok(tcp) => hold::hold(file, megabytes, resume, tcp),
                Err(fault) => Err(fault),
            },
            None => return usage(),
        },
        ["turns", threads, last] => match (threads.parse(), last.parse()) {
            (Ok(threads), Ok(last)) => turns::turns(threads, last),
            _ => return usage(),
        },
        ["walk", directory, megabytes] => match megabytes.parse() {
            Ok(megabytes) => {
                leave_the_callers_session().and_then(|()| walk::run(directory, megabytes))
            }
            Err(_) => return usage(),
        },
        // Started by `walk` only.
        ["walker", directory, megabytes, kind] => match megabytes.parse() {
            Ok(megabytes) => walk::walk(std::path::Path::new(directory), megabytes, kind),
            Err(_) => return usage(),
        },
        // Started by `tree` only.
        ["member", rest @ ..] => match member::Member::parse(rest) {
            Some(member) => member.run(),
            None => return usage(),
        },
        _ => return usage(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("victim: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn hold_options(megabytes: &str, options: &[&str]) -> Option<(usize, bool, Option<u16>)> {
    let (mut resume, mut port) = (false, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--resume" => resume = true,
            "--tcp" => port = Some(options.next()?.parse().ok()?),
            _ => return None,
        }
    }
    Some((megabytes.parse().ok()?, resume, port))
}

fn connect(port: Option<u16>) -> Result<Option<TcpStream>, Fault> {
    Ok(port.map(|port| TcpStream::connect(("127.0.0.1", port))).transpose()?)
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn leave_the_callers_session() -> Result<(), Fault> {
    if unistd::getsid(None)? != unistd::getpid() {
        unistd::setsid().map_err(|errno| format!("start it with setsid: {errno}"))?;
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    Ok(())
}
