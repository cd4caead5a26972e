//! Dumps by the stand-in for CRIU.

use crate::Error;
use crate::cases::{Contender, Dump};
use crate::client::Client;
use crate::image::{Image, Shape};
use crate::measure::Bench;
use crate::memory::PAGE;
use crate::pipes;
use crate::process::{Group, Program, in_path};
use crate::producer;
use crate::reader::{Take, drain, read_into};
use crate::results::{ProcessCost, Round};
use crate::scratch::Scratch;
use crate::server;
use crate::streamer::Streamer;
use criu_protocol::{Direction, Event, Listener};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

/// One contender's dump. The clock runs from before CRIU connects until the last reader has seen
/// the end and all programs have ended.
pub(crate) fn run(bench: &Bench, dump: &Dump, contender: &Contender) -> Result<Round, Error> {
    let image = dump.shape.image(&bench.memory);
    match contender {
        Contender::Bare if dump.shape == Shape::SmallFiles => nobody(bench, &image),
        Contender::Bare => bare(bench, dump, &image),
        Contender::Cat => cat(bench, dump, &image),
        Contender::Filters => streamer(bench, dump, &image, Streamer::Filters),
        Contender::Base => {
            let path = bench.options.base.as_deref().ok_or("no BASE")?;
            streamer(bench, dump, &image, Streamer::Base(path))
        }
        Contender::Peer => {
            let path = bench.options.peer.as_deref().ok_or("no PEER")?;
            streamer(bench, dump, &image, Streamer::Peer(path))
        }
        Contender::Criu
        | Contender::Kept
        | Contender::Early
        | Contender::Tenth
        | Contender::Memory
        | Contender::SmallPages => Err("takes no part in this case".into()),
    }
}

fn streamer(
    bench: &Bench,
    dump: &Dump,
    image: &Image,
    streamer: Streamer<'_>,
) -> Result<Round, Error> {
    let scratch = Scratch::new("dump")?;
    thread::scope(|scope| {
        let (mut readers, mut outputs, mut dds) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..dump.shards {
            let (read, write) = pipes::pipe()?;
            match take(bench, dump, index) {
                Take::Dd => dds.push(dd(read)?),
                take => readers.push(reader(scope, read, take)),
            }
            outputs.push(write);
        }
        let mut started = streamer.capture(scratch.path(), outputs)?;
        dds.into_iter().try_for_each(|dd| started.programs.add(dd).map(drop))?;
        started.wait_for_socket()?;
        let start = Instant::now();
        let produced =
            Client::dump(scratch.path()).and_then(|it| producer::dump(it, image, &bench.memory));
        let processes = started.programs.finish()?;
        produced?;
        let taken = readers.into_iter().map(join).sum::<Result<u64, Error>>()?;
        let round = round(start, image, processes);
        // The rest are markers. What a `dd` has read it tells nobody.
        match taken >= round.bytes || dump.take == Take::Dd {
            true => Ok(round),
            false => Err(format!("only {taken} of {} bytes came out", round.bytes).into()),
        }
    })
}

/// A reader that is a process of its own.
fn dd(read: OwnedFd) -> Result<Program, Error> {
    let dd = Program::new(&in_path("dd")?).args(&["bs=1M", "of=/dev/null", "status=none"]);
    Ok(dd.stdin(read).aside())
}

/// The kernel's limit: one pipe, and nothing between producer and reader.
fn bare(bench: &Bench, dump: &Dump, image: &Image) -> Result<Round, Error> {
    thread::scope(|scope| {
        let (read, write) = pipes::grown_pipe()?;
        let reader = reader(scope, read, dump.take);
        let start = Instant::now();
        producer::pour(&write, image, &bench.memory)?;
        drop(write);
        join(reader)?;
        let round = round(start, image, Vec::new());
        bench.bare_rate.set(Some(round.bytes as f64 / round.wall_seconds));
        Ok(round)
    })
}

fn cat(bench: &Bench, dump: &Dump, image: &Image) -> Result<Round, Error> {
    thread::scope(|scope| {
        let (input, write) = pipes::grown_pipe()?;
        let (read, output) = pipes::grown_pipe()?;
        let cat = Program::new(&in_path("cat")?).stdin(input).stdout(output);
        let reader = reader(scope, read, dump.take);
        let programs = Group::start(vec![cat])?;
        let start = Instant::now();
        producer::pour(&write, image, &bench.memory)?;
        drop(write);
        let processes = programs.finish()?;
        join(reader)?;
        Ok(round(start, image, processes))
    })
}

/// The protocol's limit: a thread that takes each pipe and throws away what is in it.
fn nobody(bench: &Bench, image: &Image) -> Result<Round, Error> {
    let scratch = Scratch::new("dump")?;
    let listener = Listener::bind(scratch.path(), Direction::Capture)?;
    thread::scope(|scope| {
        let client = Client::dump(scratch.path())?;
        let discarding = scope.spawn(|| discard_dump(&listener));
        let start = Instant::now();
        producer::dump(client, image, &bench.memory)?;
        discarding.join().map_err(|_| "the reader panicked")??;
        Ok(round(start, image, Vec::new()))
    })
}

fn discard_dump(listener: &Listener) -> Result<(), Error> {
    let mut connection = server::accept(listener)?;
    let mut buffer = [0; PAGE];
    loop {
        match server::next_event(&mut connection)? {
            Event::Pipe(pipe) => drop(read_into(File::from(pipe), &mut buffer)?),
            Event::HangUp => return Ok(()),
            Event::Request(_) => {}
        }
    }
}

/// How the reader of a shard takes it: the first one of a slow case at a tenth of the speed that
/// would be its share of what a bare pipe carries.
fn take(bench: &Bench, dump: &Dump, shard: usize) -> Take {
    const GUESS: f64 = 10e9;

    match dump.slow && shard == 0 {
        true => {
            let share = bench.bare_rate.get().unwrap_or(GUESS) / dump.shards as f64;
            Take::Throttled(share / 10.0)
        }
        false => dump.take,
    }
}

type Reader<'scope> = ScopedJoinHandle<'scope, std::io::Result<u64>>;

fn reader<'scope>(scope: &'scope Scope<'scope, '_>, pipe: OwnedFd, take: Take) -> Reader<'scope> {
    scope.spawn(move || drain(pipe, take))
}

fn join(reader: Reader<'_>) -> Result<u64, Error> {
    Ok(reader.join().map_err(|_| "a reader panicked")??)
}

fn round(start: Instant, image: &Image, processes: Vec<ProcessCost>) -> Round {
    Round {
        wall_seconds: start.elapsed().as_secs_f64(),
        bytes: image.bytes(),
        files: image.files(),
        processes,
        arrived: None,
    }
}
