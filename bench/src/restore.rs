//! Restores by the stand-in for CRIU.

use crate::Error;
use crate::cases::{Contender, Restore, Source};
use crate::client::Client;
use crate::consumer;
use crate::feed::{self, Feed};
use crate::image::{Image, Shape, SmallFile};
use crate::measure::Bench;
use crate::pipes;
use crate::process::{Group, Program, in_path};
use crate::results::{ProcessCost, Round};
use crate::scratch::Scratch;
use crate::server;
use crate::streamer::{Started, Store, Streamer};
use criu_protocol::{Direction, Event, Listener};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

/// One contender's restore. The clock runs from before the first byte is written until CRIU has
/// checked the last page and all programs have ended.
pub(crate) fn run(bench: &Bench, restore: &Restore, contender: &Contender) -> Result<Round, Error> {
    let image = restore.shape.image(&bench.memory);
    let filters = |store| streamer(bench, restore, &image, Streamer::Filters, store);
    match contender {
        Contender::Bare if restore.shape == Shape::SmallFiles => nobody(&image),
        Contender::Bare if restore.source == Source::File => bare_file(bench, &image),
        Contender::Bare => bare(bench, &image),
        Contender::Cat => cat(bench, &image),
        Contender::Filters => filters(Store::Auto),
        Contender::Memory => filters(Store::Memory),
        Contender::SmallPages => filters(Store::SmallPages),
        Contender::Base => {
            let path = bench.options.base.as_deref().ok_or("no BASE")?;
            streamer(bench, restore, &image, Streamer::Base(path), Store::Auto)
        }
        Contender::Peer => {
            let path = bench.options.peer.as_deref().ok_or("no PEER")?;
            streamer(bench, restore, &image, Streamer::Peer(path), Store::Auto)
        }
        Contender::Criu | Contender::Kept | Contender::Early | Contender::Tenth => {
            Err("takes no part in this case".into())
        }
    }
}

fn streamer(
    bench: &Bench,
    restore: &Restore,
    image: &Image,
    streamer: Streamer<'_>,
    store: Store,
) -> Result<Round, Error> {
    let scratch = Scratch::new("restore")?;
    let feeds = feed::shards(image, &bench.memory, restore.shards())?;
    if restore.source == Source::File {
        let kept = Scratch::new("image")?;
        let inputs =
            feeds.iter().map(|feed| file(&kept, feed)).collect::<io::Result<Vec<OwnedFd>>>()?;
        let start = Instant::now();
        let started = streamer.serve(scratch.path(), inputs, store)?;
        let processes = consume(image, &scratch, started)?;
        return Ok(round(start, image, processes));
    }
    thread::scope(|scope| {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for _ in &feeds {
            let (read, write) = pipes::pipe()?;
            inputs.push(read);
            outputs.push(write);
        }
        let started = streamer.serve(scratch.path(), inputs, store)?;
        let start = Instant::now();
        let feeders: Vec<_> =
            feeds.iter().zip(outputs).map(|(feed, output)| feeder(scope, feed, output)).collect();
        let processes = consume(image, &scratch, started)?;
        feeders.into_iter().try_for_each(join)?;
        Ok(round(start, image, processes))
    })
}

/// CRIU's part, and the end of the filters.
fn consume(
    image: &Image,
    scratch: &Scratch,
    mut started: Started,
) -> Result<Vec<ProcessCost>, Error> {
    started.wait_for_socket()?;
    consumer::restore(Client::restore(scratch.path())?, image)?;
    started.programs.finish()
}

/// A file that holds a stream, open to be read.
fn file(kept: &Scratch, feed: &Feed<'_>) -> io::Result<OwnedFd> {
    let path = kept.path().join("stream");
    feed.write_to(File::create(&path)?)?;
    Ok(File::open(&path)?.into())
}

/// The protocol's limit: a thread that has all files at hand.
fn nobody(image: &Image) -> Result<Round, Error> {
    let scratch = Scratch::new("restore")?;
    let listener = Listener::bind(scratch.path(), Direction::Serve)?;
    thread::scope(|scope| {
        let client = Client::restore(scratch.path())?;
        let serving = scope.spawn(|| serve(&listener, image));
        let start = Instant::now();
        consumer::restore(client, image)?;
        serving.join().map_err(|_| "the server panicked")??;
        Ok(round(start, image, Vec::new()))
    })
}

fn serve(listener: &Listener, image: &Image) -> Result<(), Error> {
    let content = |file: &'_ SmallFile| (file.name.clone(), file.content.clone());
    let files: HashMap<_, _> = image.small.iter().chain([&image.inventory]).map(content).collect();
    let mut connection = server::accept(listener)?;
    let mut promised = None;
    loop {
        match server::next_event(&mut connection)? {
            Event::Request(name) => {
                promised = name.ok().and_then(|name| files.get(name.as_str()));
                connection.reply(promised.is_some())?;
            }
            Event::Pipe(pipe) => {
                File::from(pipe).write_all(promised.take().ok_or("a pipe for no file")?)?;
            }
            Event::HangUp => return Ok(()),
        }
    }
}

/// The least that a reader of a file can cost: no pipe at all.
fn bare_file(bench: &Bench, image: &Image) -> Result<Round, Error> {
    let kept = Scratch::new("image")?;
    let file = file(&kept, &feed::bare(image, &bench.memory))?;
    let start = Instant::now();
    consumer::check_pages(file, 0..bench.memory.pages())?;
    Ok(round(start, image, Vec::new()))
}

/// The least that a writer and a reader who copy can cost: one pipe between them, and no order to
/// be kept but that of the memory.
fn bare(bench: &Bench, image: &Image) -> Result<Round, Error> {
    let feed = feed::bare(image, &bench.memory);
    thread::scope(|scope| {
        let (read, write) = pipes::grown_pipe()?;
        let start = Instant::now();
        let feeder = feeder(scope, &feed, write);
        consumer::check_pages(read, 0..bench.memory.pages())?;
        join(feeder)?;
        Ok(round(start, image, Vec::new()))
    })
}

fn cat(bench: &Bench, image: &Image) -> Result<Round, Error> {
    let feed = feed::bare(image, &bench.memory);
    thread::scope(|scope| {
        let (input, write) = pipes::grown_pipe()?;
        let (read, output) = pipes::grown_pipe()?;
        let cat = Program::new(&in_path("cat")?).stdin(input).stdout(output);
        let programs = Group::start(vec![cat])?;
        let start = Instant::now();
        let feeder = feeder(scope, &feed, write);
        consumer::check_pages(read, 0..bench.memory.pages())?;
        let processes = programs.finish()?;
        join(feeder)?;
        Ok(round(start, image, processes))
    })
}

type Feeder<'scope> = ScopedJoinHandle<'scope, io::Result<()>>;

fn feeder<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    feed: &'env Feed<'env>,
    output: OwnedFd,
) -> Feeder<'scope> {
    scope.spawn(move || feed.write_to(File::from(output)))
}

fn join(feeder: Feeder<'_>) -> Result<(), Error> {
    match feeder.join().map_err(|_| "a writer panicked")? {
        // Nobody has to read behind the end of the image.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
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
