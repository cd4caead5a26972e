//! Each filter, run in the way that most tests want it: alone, fed from memory,
//! with its progress lines apart from its messages.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::criu::{DumpClient, RestoreClient, pipe};
use crate::pipeline::{Filter, Finished, Running, collect_from, write_until_refused};
use crate::stream::Files;

/// The first of the descriptors that shards get here.
pub const FIRST_SHARD_FD: i32 = 10;

/// `criu-sock-capture -D dir`, to be started.
pub fn capture(dir: &Path) -> Filter {
    Filter::new("criu-sock-capture").arg("-D").arg(dir).progress_apart()
}

/// `image-serve -D dir`, to be started.
pub fn serve(dir: &Path) -> Filter {
    Filter::new("image-serve").arg("-D").arg(dir).progress_apart()
}

/// `image-extract -D dir`, to be started.
pub fn extract(dir: &Path) -> Filter {
    Filter::new("image-extract").arg("-D").arg(dir).progress_apart()
}

/// `-s 10,11,…` for so many shards.
pub fn shard_fds(count: usize) -> String {
    let fds = (FIRST_SHARD_FD..).take(count).map(|fd| fd.to_string());
    fds.collect::<Vec<_>>().join(",")
}

/// `shard-split` over these outputs, to be started.
pub fn split_to(shards: impl IntoIterator<Item = OwnedFd>) -> Filter {
    with_shards(Filter::new("shard-split").progress_apart(), shards)
}

/// `shard-merge` of these inputs, to be started.
pub fn merge_from(shards: impl IntoIterator<Item = OwnedFd>) -> Filter {
    with_shards(Filter::new("shard-merge").progress_apart(), shards)
}

fn with_shards(filter: Filter, shards: impl IntoIterator<Item = OwnedFd>) -> Filter {
    let mut count = 0;
    let filter = shards.into_iter().zip(FIRST_SHARD_FD..).fold(filter, |filter, (shard, fd)| {
        count += 1;
        filter.fd(fd, shard)
    });
    filter.arg("-s").arg(shard_fds(count))
}

/// Runs `shard-split` on a stream: what its user saw, and its shards.
pub fn split(stream: &[u8], count: usize) -> (Finished, Vec<Vec<u8>>) {
    let (outputs, collecting): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (read_end, write_end) = pipe(None).expect("a pipe for a shard");
            (write_end, collect_from(read_end))
        })
        .unzip();
    let finished = split_to(outputs).run(stream);
    let shards = collecting.into_iter().map(|shard| shard.join().expect("a shard")).collect();
    (finished, shards)
}

/// Runs `shard-merge` on shards: what its user saw, the stream included.
pub fn merge(shards: &[Vec<u8>]) -> Finished {
    let (inputs, feeding): (Vec<_>, Vec<_>) = shards
        .iter()
        .map(|shard| {
            let (read_end, write_end) = pipe(None).expect("a pipe for a shard");
            let shard = shard.clone();
            (read_end, thread::spawn(move || write_until_refused(write_end, &shard)))
        })
        .unzip();
    let finished = merge_from(inputs).run(&[]);
    feeding.into_iter().for_each(|feed| feed.join().expect("a shard is fed"));
    finished
}

/// A `criu-sock-capture` that waits for CRIU.
#[derive(Debug)]
pub struct Capture {
    /// The program.
    pub running: Running,
    stdout: JoinHandle<Vec<u8>>,
}

impl Capture {
    /// Starts the filter, which [`capture`] made, and waits for `socket-init`.
    pub fn start(filter: Filter) -> Self {
        let (read_end, write_end) = pipe(None).expect("a pipe for stdout");
        let running = filter.stdout(write_end).start();
        running.wait_for("socket-init");
        Self { running, stdout: collect_from(read_end) }
    }

    /// The program's end, and its stream.
    pub fn finish(self) -> Finished {
        let mut finished = self.running.finish();
        finished.stdout = self.stdout.join().expect("stdout is collected");
        finished
    }
}

/// Runs a dump by the stand-in: what the user of `criu-sock-capture` saw.
pub fn dump(dir: &Path, dump: impl FnOnce(DumpClient)) -> Finished {
    let capture = Capture::start(capture(dir));
    dump(DumpClient::connect(dir).expect("the socket is there after socket-init"));
    capture.finish()
}

/// An `image-serve` that has this stream on its standard input.
pub fn start_serve(filter: Filter, stream: &[u8]) -> Running {
    let (stdin, feed) = pipe(None).expect("a pipe for stdin");
    let running = filter.stdin(stdin).start();
    let stream = stream.to_vec();
    thread::spawn(move || write_until_refused(feed, &stream));
    running
}

/// Runs a restore by the stand-in: what the user of `image-serve` saw.
pub fn restore(dir: &Path, stream: &[u8], restore: impl FnOnce(RestoreClient)) -> Finished {
    let running = start_serve(serve(dir), stream);
    running.wait_for("socket-init");
    restore(RestoreClient::connect(dir).expect("the socket is there after socket-init"));
    running.finish()
}

/// A directory as an image.
pub fn files_in(dir: &Path) -> Files {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        (name, fs::read(entry.path()).expect("the file can be read"))
    };
    entries.map(|entry| file(entry.expect("an entry"))).collect()
}

/// Panics with the name of the first file that differs, not with its megabytes.
#[track_caller]
pub fn assert_same_files(found: &Files, expected: &Files, case: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{case}: other files");
    for (name, content) in expected {
        let same = found[name] == *content;
        let (is, should) = (found[name].len(), content.len());
        assert!(same, "{case}: {name} differs ({is} bytes, should be {should})");
    }
}
