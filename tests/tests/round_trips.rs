//! Whatever CRIU dumps comes back identical, however the bytes were cut on
//! their way.
//!
//! The cases come from seeds. A failure names its seed; `SEED=n cargo test -p
//! tests --test round_trips` repeats that case alone, and `CASES=n` runs more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, vmsplice};
use tempfile::tempdir;
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{self, Capture, assert_same_files, files_in};
use tests::pipeline::{Filter, Running, collect_from};
use tests::random::{Random, for_each_seed};
use tests::stream::{Files, read_shards, read_stream};

const CASES: u64 = 30;
/// One byte more than the largest file.
const LARGE: usize = (64 << 20) + 1;
const PIPE_SIZES: [Option<usize>; 5] =
    [None, Some(4096), Some(16 << 10), Some(1 << 20), Some(4 << 20)];
const TIME_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn any_tree_of_files_comes_back_identical() {
    for_each_seed(CASES, comes_back_identical);
}

fn comes_back_identical(seed: u64) {
    let mut random = Random::new(seed);
    let dump = Dump::any(seed, &mut random);
    let shards = 1 + random.below(8);
    let dir = tempdir().expect("a directory");
    if random.one_in(2) {
        let shards = capture_and_split(dir.path(), &dump, shards, &mut random);
        let read = read_shards(&shards).expect("valid shards");
        assert_same_files(&read, &dump.files, "in the shards");
        let inputs = shards.into_iter().map(|shard| trickle(shard, &mut random)).collect();
        restore(dir.path(), inputs, &dump.files, &mut random);
    } else {
        shard_to_shard(dir.path(), &dump, shards, &mut random);
    }
}

/// What CRIU writes, in the order in which it does.
struct Dump {
    files: Files,
    steps: Vec<Step>,
    vmsplice: bool,
}

enum Step {
    Open { name: String, pipe: Option<usize> },
    Write { name: String, bytes: Vec<u8> },
    Close { name: String },
}

impl Dump {
    /// A tree of one of the shapes that dumps have, by turns: some files of many
    /// megabytes, a thousand small ones, or a few.
    fn any(seed: u64, random: &mut Random) -> Self {
        let (count, largest) = match seed % 10 {
            0 => (1 + random.below(3), LARGE),
            1 => (1000, 5000),
            2..5 => (1 + random.below(20), 4 << 20),
            _ => (1 + random.below(60), 100_000),
        };
        let at_once = 1 + random.below(8);
        let mut dump = Self { files: Files::new(), steps: Vec::new(), vmsplice: random.one_in(2) };
        let mut open: BTreeMap<String, (Vec<u8>, usize)> = BTreeMap::new();
        let mut to_come = count;
        while to_come > 0 || !open.is_empty() {
            if to_come > 0 && open.len() < at_once && random.one_in(2) {
                // A tenth of the names come again.
                let number = random.below(1 + count * 9 / 10);
                let kind = if number % 3 == 0 { "pages" } else { "file" };
                let name = format!("{kind}-{number}.img");
                to_come -= 1;
                if !open.contains_key(&name) {
                    let length = match largest {
                        LARGE if to_come == 0 => LARGE - 1,
                        _ => random.magnitude_below(largest),
                    };
                    open.insert(name.clone(), (random.bytes(length), 0));
                    dump.steps.push(Step::Open { name, pipe: random.pick(&PIPE_SIZES) });
                }
                continue;
            }
            let Some(name) = open.keys().nth(random.below(open.len().max(1))).cloned() else {
                continue;
            };
            let (content, written) = open.get_mut(&name).expect("an open file");
            let rest = content.len() - *written;
            if rest == 0 {
                let (content, _) = open.remove(&name).expect("an open file");
                dump.files.insert(name.clone(), content);
                dump.steps.push(Step::Close { name });
            } else {
                let length = 1 + random.magnitude_below((8 << 20).min(rest) + 1).min(rest - 1);
                let bytes = content[*written..*written + length].to_vec();
                *written += length;
                dump.steps.push(Step::Write { name, bytes });
            }
        }
        dump.inventory(random);
        dump
    }

    /// The last file of a dump.
    fn inventory(&mut self, random: &mut Random) {
        let name = || "inventory.img".to_string();
        let bytes = random.bytes(77);
        self.files.insert(name(), bytes.clone());
        self.steps.push(Step::Open { name: name(), pipe: None });
        self.steps.push(Step::Write { name: name(), bytes });
        self.steps.push(Step::Close { name: name() });
    }

    fn send(&self, mut client: DumpClient) {
        let mut open: BTreeMap<&str, File> = BTreeMap::new();
        for step in &self.steps {
            match step {
                Step::Open { name, pipe } => {
                    let file = client.open_sized(name, *pipe).expect("capture takes a file");
                    open.insert(name, file);
                }
                Step::Write { name, bytes } if self.vmsplice => vmsplice_all(&open[&**name], bytes),
                Step::Write { name, bytes } => {
                    (&open[&**name]).write_all(bytes).expect("capture reads");
                }
                Step::Close { name } => drop(open.remove(&**name)),
            }
        }
    }
}

/// CRIU's own way to fill its pipes: the pages go by reference.
fn vmsplice_all(pipe: &File, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let moved = vmsplice(pipe, &[IoSlice::new(bytes)], SpliceFFlags::empty());
        bytes = &bytes[moved.expect("capture reads")..];
    }
}

/// A pipe out of which `bytes` come, in writes of any size.
fn trickle(bytes: Vec<u8>, random: &mut Random) -> OwnedFd {
    let (read_end, write_end) = pipe(random.pick(&PIPE_SIZES)).expect("a pipe");
    let mut random = random.clone();
    thread::spawn(move || {
        let mut output = File::from(write_end);
        let mut rest = &bytes[..];
        // A stream of megabytes isn't cut into single bytes: it would take minutes.
        let largest = (rest.len() / 64).max(8192);
        while !rest.is_empty() {
            let length = (1 + random.magnitude_below(largest)).min(rest.len());
            let (now, later) = rest.split_at(length);
            if output.write_all(now).is_err() {
                return;
            }
            rest = later;
        }
    });
    read_end
}

/// `shard-split` in either of its ways.
fn split_to(outputs: Vec<OwnedFd>, random: &mut Random) -> Filter {
    let metadata_first = outputs.len() > 1 && random.one_in(2);
    let split = filters::split_to(outputs);
    if metadata_first { split.arg("--metadata-first") } else { split }
}

/// `criu-sock-capture | shard-split`, to the end: the shards.
fn capture_and_split(dir: &Path, dump: &Dump, count: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let any_pipe = |random: &mut Random| pipe(random.pick(&PIPE_SIZES)).expect("a pipe");
    let (stdin, stdout) = any_pipe(random);
    let (outputs, collecting): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (read_end, write_end) = any_pipe(random);
            (write_end, collect_from(read_end))
        })
        .unzip();
    let split = split_to(outputs, random).stdin(stdin).time_limit(TIME_LIMIT).start();
    let capture = filters::capture(dir).stdout(stdout).time_limit(TIME_LIMIT).start();
    capture.wait_for("socket-init");
    dump.send(DumpClient::connect(dir).expect("the socket is there"));
    capture.finish().succeeded();
    split.finish().succeeded();
    collecting.into_iter().map(|shard| shard.join().expect("a shard")).collect()
}

/// `shard-merge | image-serve` or `image-extract`: the files are as expected.
fn restore(dir: &Path, inputs: Vec<OwnedFd>, expected: &Files, random: &mut Random) {
    let (stdin, stdout) = pipe(random.pick(&PIPE_SIZES)).expect("a pipe");
    let merge = filters::merge_from(inputs).stdout(stdout).time_limit(TIME_LIMIT).start();
    let into = dir.join("restored");
    std::fs::create_dir(&into).expect("a directory");
    if random.one_in(2) {
        let extract = filters::extract(&into).stdin(stdin).time_limit(TIME_LIMIT).start();
        merge.finish().succeeded();
        extract.finish().succeeded();
        assert_same_files(&files_in(&into), expected, "extracted");
    } else {
        let serve = filters::serve(&into).stdin(stdin).time_limit(TIME_LIMIT).start();
        serve.wait_for("socket-init");
        // CRIU may read while the image arrives.
        fetch_and_compare(&into, expected, random);
        merge.finish().succeeded();
        serve.finish().succeeded();
    }
}

/// CRIU's restore, in an order of its own.
fn fetch_and_compare(dir: &Path, expected: &Files, random: &mut Random) {
    let mut client = RestoreClient::connect(dir).expect("the socket is there");
    let mut names: Vec<_> = expected.keys().collect();
    while !names.is_empty() {
        let name = names.swap_remove(random.below(names.len()));
        let file = client.open_sized(name, random.pick(&PIPE_SIZES)).expect("a reply");
        let mut file = file.unwrap_or_else(|| panic!("{name} isn't served"));
        let mut content = Vec::new();
        file.read_to_end(&mut content).expect("the pipe can be read");
        assert!(content == expected[name], "served: {name} differs");
    }
    assert!(client.open("missing.img").expect("a reply").is_none());
}

/// Live migration: `shard-split`'s outputs are `shard-merge`'s inputs.
fn shard_to_shard(dir: &Path, dump: &Dump, count: usize, random: &mut Random) {
    let pipes = |count| (0..count).map(|_| pipe(None).expect("a pipe"));
    let (to_merge, from_split): (Vec<_>, Vec<_>) = pipes(count).unzip();
    let (stdin, stdout) = pipe(random.pick(&PIPE_SIZES)).expect("a pipe");
    let split = split_to(from_split, random).stdin(stdin).time_limit(TIME_LIMIT).start();
    thread::scope(|scope| {
        let restored = scope.spawn(|| restore(dir, to_merge, &dump.files, random));
        let capture = filters::capture(dir).stdout(stdout).time_limit(TIME_LIMIT).start();
        capture.wait_for("socket-init");
        dump.send(DumpClient::connect(dir).expect("the socket is there"));
        both_succeed(capture, split);
        restored.join().expect("the restore");
    });
}

fn both_succeed(capture: Running, split: Running) {
    capture.finish().succeeded();
    split.finish().succeeded();
}

#[test]
fn the_last_of_many_files_with_one_name_is_restored() {
    let dir = tempdir().expect("a directory");
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    for round in 0..100 {
        client.send("again.img", format!("round {round}").as_bytes()).expect("capture reads");
    }
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(read_stream(&captured.stdout).expect("valid")["again.img"], b"round 99");
    let into = tempdir().expect("a directory");
    filters::extract(into.path()).run(&captured.stdout).succeeded();
    assert_eq!(files_in(into.path())["again.img"], b"round 99");
}
