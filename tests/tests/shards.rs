//! Stragglers: a shard that is slow, stops or dies holds up nothing but itself,
//! and `blocked_millis` tells which it was.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::tempfile;
use tests::criu::pipe;
use tests::filters::{self, split_to};
use tests::pipeline::{Finished, Running, collect_from, wait_until, write_until_refused};
use tests::random::Random;
use tests::stream::{Writer, looks_complete, read_shards, read_stream};

const MIB: usize = 1 << 20;

/// An image of one file of so many bytes, in chunks as large as CRIU's pipes.
fn image(length: usize) -> Vec<u8> {
    let content = Random::new(1).bytes(length);
    let named = Writer::new().name("pages-1.img");
    let pages = content.chunks(MIB).fold(named, |writer, chunk| writer.data(chunk)).file_eof();
    pages.file("inventory.img", b"all").image_eof().finish()
}

/// What a shard is read from, and what `shard-split` writes.
fn ends(kind: &str) -> (OwnedFd, OwnedFd) {
    match kind {
        "pipe" => pipe(None).expect("a pipe"),
        "unix" => UnixStream::pair().map(|(a, b)| (a.into(), b.into())).expect("a socket"),
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("an address");
            let writer = TcpStream::connect(address).expect("a connection");
            (listener.accept().expect("a connection").0.into(), writer.into())
        }
        other => panic!("no such kind: {other}"),
    }
}

/// A reader of a shard that can be stopped and throttled: not by a clock, which a busy machine
/// would falsify, but by what the other readers have read.
#[derive(Clone)]
struct Tap {
    open: Arc<AtomicBool>,
    /// Bytes so far.
    read: Arc<AtomicU64>,
    /// How many of these stand for one of a reader that it is compared with.
    part: u64,
    /// Those that it is not to be ahead of.
    others: Vec<Tap>,
    has_ended: Arc<AtomicBool>,
}

impl Tap {
    fn new(open: bool) -> Self {
        Self {
            open: Arc::new(AtomicBool::new(open)),
            read: Arc::default(),
            part: 1,
            others: Vec::new(),
            has_ended: Arc::default(),
        }
    }

    /// Readers that read such parts of a whole, in step.
    fn in_step<const N: usize>(parts: [u64; N]) -> [Self; N] {
        let taps = parts.map(|part| Self { part, ..Self::new(true) });
        taps.clone().map(|tap| Self { others: taps.to_vec(), ..tap })
    }

    fn collect(&self, from: OwnedFd) -> JoinHandle<Vec<u8>> {
        let tap = self.clone();
        thread::spawn(move || {
            let (mut from, mut content) = (File::from(from), Vec::new());
            let mut buffer = vec![0; 64 << 10];
            loop {
                while !tap.may_read() {
                    sleep(Duration::from_micros(200));
                }
                let read = from.read(&mut buffer).expect("the shard can be read");
                if read == 0 {
                    tap.has_ended.store(true, Ordering::Relaxed);
                    return content;
                }
                content.extend_from_slice(&buffer[..read]);
                tap.read.fetch_add(read as u64, Ordering::Relaxed);
            }
        })
    }

    fn may_read(&self) -> bool {
        /// So far may one of a reader's parts be ahead of the others', in bytes.
        const AHEAD: u64 = 16 << 10;
        let position = |tap: &Tap| tap.read.load(Ordering::Relaxed) / tap.part;
        let is_behind = |other: &Tap| {
            !other.has_ended.load(Ordering::Relaxed) && position(other) + AHEAD < position(self)
        };
        self.open.load(Ordering::Relaxed) && !self.others.iter().any(is_behind)
    }

    fn bytes(&self) -> usize {
        self.read.load(Ordering::Relaxed) as usize
    }
}

struct Split {
    running: Running,
    shards: Vec<JoinHandle<Vec<u8>>>,
}

impl Split {
    fn start(kind: &str, stream: Vec<u8>, taps: &[Tap]) -> Self {
        let (from, to): (Vec<_>, Vec<_>) = taps.iter().map(|_| ends(kind)).unzip();
        let shards = taps.iter().zip(from).map(|(tap, from)| tap.collect(from)).collect();
        let (stdin, feed) = pipe(None).expect("a pipe");
        let running = split_to(to).stdin(stdin).start();
        thread::spawn(move || write_until_refused(feed, &stream));
        Self { running, shards }
    }

    fn finish(self) -> (Finished, Vec<Vec<u8>>) {
        let finished = self.running.finish();
        finished.succeeded();
        let shards = self.shards.into_iter().map(|shard| shard.join().expect("a shard"));
        (finished, shards.collect())
    }
}

#[test]
fn a_stalled_shard_does_not_stop_the_others() {
    // What rests in its pipe, of up to 4 MiB with CAP_SYS_RESOURCE, and in the socket's queues: TCP's
    // grow to 4 and 6 MiB.
    for (kind, resting) in [("pipe", 5 * MIB), ("unix", 6 * MIB), ("tcp", 17 * MIB)] {
        let stream = image(64 * MIB);
        let since = Instant::now();
        let taps = [true, false, true, true].map(Tap::new);
        let split = Split::start(kind, stream.clone(), &taps);
        let others = || taps.iter().map(Tap::bytes).sum::<usize>();
        // As long as they go on: an emulated processor takes minutes.
        while others() + resting < stream.len() {
            let before = others();
            wait_until(&format!("{kind}: more than {before} bytes"), || others() > before);
        }
        // TCP's queues may have all of it, and keep it when the program has ended.
        if kind != "tcp" {
            // As long again, in which nothing else keeps the program waiting.
            sleep(since.elapsed());
            assert!(split.running.is_running(), "ended without its second shard");
        }
        taps[1].open.store(true, Ordering::Relaxed);
        let (finished, shards) = split.finish();
        assert!(read_shards(&shards).is_ok_and(|read| read == read_stream(&stream).unwrap()));
        if kind == "unix" {
            let blocked = blocked_millis(&finished);
            let others = [blocked[0], blocked[2], blocked[3]];
            assert!(others.iter().all(|&time| time < blocked[1]), "{blocked:?}");
        }
    }
}

/// How long each shard kept the program waiting, by its JSON line.
fn blocked_millis(finished: &Finished) -> Vec<u64> {
    let line = finished.progress.last().expect("a line");
    let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let shards = json["shards"].as_array().expect("shards");
    shards.iter().map(|shard| shard["blocked_millis"].as_u64().expect("a number")).collect()
}

#[test]
fn a_shard_that_comes_back_takes_part_again() {
    let stream = image(48 * MIB);
    let [mut healthy, stopped] = [Tap::new(true), Tap::new(false)];
    // It is as if the other had read half of it, too.
    stopped.read.store(16 << 20, Ordering::Relaxed);
    healthy.others = vec![stopped.clone()];
    let split = Split::start("pipe", stream.clone(), &[healthy.clone(), stopped.clone()]);
    wait_until("half of it", || healthy.bytes() >= 16 * MIB);
    stopped.open.store(true, Ordering::Relaxed);
    let (_, shards) = split.finish();
    assert!(shards[1].len() > 8 * MIB, "only {} bytes after it came back", shards[1].len());
    assert_eq!(read_shards(&shards), read_stream(&stream));
}

#[test]
fn a_shard_throttled_to_a_tenth_gets_about_a_fortieth() {
    let stream = image(64 * MIB);
    let taps = Tap::in_step([10, 10, 1, 10]);
    let (finished, shards) = Split::start("pipe", stream.clone(), &taps).finish();
    let part = stream.len() / shards[2].len();
    // Far from a quarter; its pipe alone holds a 64th.
    assert!((10..100).contains(&part), "one part in {part}");
    let blocked = blocked_millis(&finished);
    // With a source that is faster than all of them, all keep it waiting.
    assert!(blocked.iter().all(|time| *time <= blocked[2] * 2), "{blocked:?}");
}

#[test]
fn equal_readers_get_equal_shares() {
    let taps = Tap::in_step([1, 1, 1, 1]);
    let (_, shards) = Split::start("pipe", image(48 * MIB), &taps).finish();
    let sizes: Vec<_> = shards.iter().map(Vec::len).collect();
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(most * 2 <= least * 3, "{sizes:?}");
}

#[test]
fn waiting_for_room_costs_nothing() {
    // The rest of the second rests in the pipe of stdin, and who wrote it has gone.
    for (case, length) in [("stopped", 16 * MIB), ("upstream gone", 2 * MIB + 40_000)] {
        let taps = [(); 2].map(|()| Tap::new(false));
        let split = Split::start("pipe", image(length), &taps);
        sleep(Duration::from_millis(400));
        let before = split.running.cpu_ticks();
        sleep(Duration::from_millis(1500));
        let ticks = split.running.cpu_ticks() - before;
        // Some 150 if it spins, and 50 beside others who do.
        assert!(ticks <= 20, "{case}: {ticks} hundredths of a second in 1.5 s");
    }
}

#[test]
fn a_shard_that_dies_at_any_byte_is_named() {
    let stream = image(8 * MIB);
    for after in [0, 1, 40, 4096, 100_000, MIB] {
        let (from, to): (Vec<_>, Vec<_>) = [(); 2].map(|()| ends("pipe")).into_iter().unzip();
        let mut from = from.into_iter();
        let healthy = Tap::new(true).collect(from.next().expect("a shard"));
        let dying = from.next().expect("a shard");
        let dies = thread::spawn(move || {
            let mut content = vec![0; after];
            File::from(dying).read_exact(&mut content).expect("the shard has so much");
            content
        });
        let finished = split_to(to).run(&stream);
        finished.refused_with_a_place("a reader dies");
        assert_eq!(finished.stderr, ["shard-split: shard 1 (fd 11): Broken pipe"], "{after}");
        let shards = [healthy.join().expect("a shard"), dies.join().expect("a shard")];
        assert!(!shards.iter().any(|shard| looks_complete(shard)), "{after}");
    }
}

/// A shard that dies while there is nothing to be written is found out at once.
#[test]
fn a_shard_that_dies_while_the_dump_pauses_is_named() {
    for kind in ["pipe", "unix"] {
        let (from, to): (Vec<_>, Vec<_>) = [(); 2].map(|()| ends(kind)).into_iter().unzip();
        let (stdin, feed) = pipe(None).expect("a pipe");
        let running = split_to(to).stdin(stdin).start();
        let mut feed = File::from(feed);
        let stream = image(MIB);
        feed.write_all(&stream[..stream.len() / 2]).expect("it reads");
        sleep(Duration::from_millis(100));
        drop(from);
        if kind == "unix" {
            // That a peer has gone shows only when something is sent to it.
            let _ = feed.write_all(&stream[stream.len() / 2..]);
            drop(feed);
            running.finish().refused_with_a_place("both readers die");
            continue;
        }
        running.finish().refused_with_a_place("both readers die");
    }
}

#[test]
fn merge_names_the_shard_that_it_waited_for() {
    let (finished, shards) = filters::split(&image(2 * MIB), 2);
    finished.succeeded();
    let mut there = tempfile().expect("a file");
    there.write_all(&shards[0]).and_then(|()| there.rewind()).expect("room");
    let (late, feed) = pipe(None).expect("a pipe");
    let (begin, rest) = shards[1].split_at(shards[1].len() / 2);
    let mut feed = File::from(feed);
    let (collect, stdout) = pipe(None).expect("a pipe");
    let queued = late.try_clone().expect("a descriptor");
    let merge = filters::merge_from([there.into(), late]).stdout(stdout).start();
    let merged = collect_from(collect);
    feed.write_all(begin).expect("it reads");
    wait_until("it has taken what there is", || !is_readable(&queued));
    sleep(Duration::from_millis(400));
    feed.write_all(rest).expect("it reads");
    drop(feed);
    let finished = merge.finish();
    finished.succeeded();
    assert!(looks_complete(&merged.join().expect("the stream")));
    let blocked = blocked_millis(&finished);
    assert!(blocked[1] >= 200 && blocked[0] < blocked[1] / 2, "{blocked:?}");
}

fn is_readable(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("a pipe") > 0
}
