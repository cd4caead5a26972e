//! Much at once, many files, and one that is large: nothing is left behind, and no number is too
//! small for it. What takes long is ignored here, and run by `make check-load`.

use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{SpliceFFlags, vmsplice};
use tempfile::tempdir;
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{capture, merge_from, serve, split_to};
use tests::pipeline::{Filter, Running, collect_from};
use tests::random::Random;
use tests::stream::Writer;

const PATIENCE: Duration = Duration::from_secs(600);

/// What can be seen of all that runs for us.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    descriptors: usize,
    processes: usize,
    sockets: usize,
    entries: usize,
}

impl Traces {
    fn of(scratch: &Path) -> Traces {
        let ours = std::process::id().to_string();
        let is_child = |entry: &fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
            parent == Some(ours.as_str())
        };
        let count = |path: &Path| fs::read_dir(path).expect("a directory").count();
        let sockets = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
        Traces {
            descriptors: count(Path::new("/proc/self/fd")),
            processes: fs::read_dir("/proc").expect("/proc").flatten().filter(is_child).count(),
            sockets: sockets.matches(&*scratch.to_string_lossy()).count(),
            entries: count(scratch),
        }
    }
}

#[test]
fn twenty_dumps_and_restores_at_once_leave_nothing_behind() {
    let scratch = tempdir().expect("a directory");
    let dirs: Vec<_> = (0..20).map(|index| scratch.path().join(format!("{index}"))).collect();
    dirs.iter().for_each(|dir| fs::create_dir(dir).expect("a directory"));
    let before = Traces::of(scratch.path());
    thread::scope(|scope| {
        for (seed, dir) in (0..).zip(&dirs) {
            scope.spawn(move || cycle(dir, seed));
        }
    });
    // The threads that collect lines end a moment after the programs.
    let limit = Instant::now() + Duration::from_secs(60);
    while Traces::of(scratch.path()) != before {
        let after = Traces::of(scratch.path());
        assert!(Instant::now() < limit, "before: {before:?}, afterwards: {after:?}");
        thread::sleep(Duration::from_millis(20));
    }
    for dir in &dirs {
        let left: Vec<_> = fs::read_dir(dir).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A dump and a restore through shards that are joined by pipes.
fn cycle(dir: &Path, seed: u64) {
    let pages = Random::new(seed).bytes(2 << 20);
    let joint = || pipe(None).expect("a pipe");
    let (captured, merged) = (joint(), joint());
    let (from, to): (Vec<_>, Vec<_>) = (0..3).map(|_| joint()).unzip();
    let capture = capture(dir).stdout(captured.1).start();
    let split = split_to(to).stdin(captured.0).start();
    let merge = merge_from(from).stdout(merged.1).start();
    let serve = serve(dir).stdin(merged.0).start();

    capture.wait_for("socket-init");
    let mut criu = DumpClient::connect(dir).expect("the socket is there");
    criu.send("core-1.img", &seed.to_le_bytes()).expect("capture reads");
    criu.send("pages-1.img", &pages).expect("capture reads");
    criu.send("inventory.img", b"all").expect("capture reads");
    drop(criu);
    serve.wait_for("socket-init");
    let mut criu = RestoreClient::connect(dir).expect("the socket is there");
    let mut read = |name: &str| criu.read(name).expect("a reply").expect("it is served");
    assert_eq!(read("inventory.img"), b"all");
    assert_eq!(read("core-1.img"), seed.to_le_bytes());
    assert!(read("pages-1.img") == pages, "pages-1.img differs");
    drop(criu);
    for filter in [capture, split, merge, serve] {
        filter.finish().succeeded();
    }
}

/// `criu-sock-capture | shard-split | shard-merge`, in front of what is given.
fn through_shards(dir: &Path, last: Filter, dump: impl FnOnce(DumpClient)) -> Vec<u8> {
    let joint = || pipe(None).expect("a pipe");
    let (captured, merged, listed) = (joint(), joint(), joint());
    let (from, to): (Vec<_>, Vec<_>) = (0..3).map(|_| joint()).unzip();
    let capture = capture(dir).time_limit(PATIENCE).stdout(captured.1).start();
    let split = split_to(to).time_limit(PATIENCE).stdin(captured.0).start();
    let merge = merge_from(from).time_limit(PATIENCE).stdout(merged.1).start();
    let last = last.time_limit(PATIENCE).stdin(merged.0).stdout(listed.1).start();
    let list = collect_from(listed.0);
    capture.wait_for("socket-init");
    dump(DumpClient::connect(dir).expect("the socket is there"));
    for filter in [capture, split, merge, last] {
        println!("load: {}: at most {} KiB of memory", filter.pid(), peak_memory(&filter));
        filter.finish().succeeded();
    }
    list.join().expect("the list")
}

fn peak_memory(program: &Running) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("?".into(), |line| line.trim().trim_end_matches(" kB").into())
}

#[test]
#[ignore = "takes half a minute: make check-load"]
fn a_file_of_64_gib_passes_every_boundary_of_32_bits() {
    const SIZE: u64 = (64 << 30) + 12345;
    let dir = tempdir().expect("a directory");
    let memory = vec![7_u8; 1 << 20];
    let since = Instant::now();
    let list = Filter::new("image-extract").arg("--list");
    let list = through_shards(dir.path(), list, |mut criu| {
        let pages = criu.open_sized("pages-1.img", Some(4 << 20)).expect("a pipe");
        give(&pages, &memory, SIZE);
        drop(pages);
        criu.send("inventory.img", b"all").expect("capture reads");
    });
    println!("load: {SIZE} bytes in {:?}", since.elapsed());
    let list = String::from_utf8(list).expect("UTF-8");
    assert!(list.lines().any(|line| line.trim() == format!("{SIZE} pages-1.img")), "{list}");
}

/// The same page of memory, by reference, again and again.
fn give(pages: &File, memory: &[u8], size: u64) {
    let mut left = size;
    while left > 0 {
        let length = memory.len().min(left as usize);
        let slices = [IoSlice::new(&memory[..length])];
        let moved = vmsplice(pages, &slices, SpliceFFlags::empty()).expect("the pipe takes it");
        left -= moved as u64;
    }
}

#[test]
#[ignore = "takes half a minute: make check-load"]
fn an_image_of_100_000_files_arrives() {
    const FILES: usize = 100_000;
    let dir = tempdir().expect("a directory");
    let name = |index: usize| format!("core-{index}.img");
    let content = |index: usize| index.to_string().repeat(1 + index % 50);
    let since = Instant::now();
    let extracted = tempdir().expect("a directory");
    let extract = Filter::new("image-extract").arg("-D").arg(extracted.path()).progress_apart();
    through_shards(dir.path(), extract, |mut criu| {
        for index in 0..FILES {
            criu.send(&name(index), content(index).as_bytes()).expect("capture reads");
        }
        criu.send("inventory.img", b"all").expect("capture reads");
    });
    println!("load: {FILES} files in {:?}", since.elapsed());
    assert_eq!(fs::read_dir(extracted.path()).expect("extracted").count(), FILES + 1);
    for index in (0..FILES).step_by(97) {
        let found = fs::read_to_string(extracted.path().join(name(index))).expect("a file");
        assert_eq!(found, content(index));
    }

    // And served, with far more files than descriptors.
    let stream = joined(&extracted);
    let (input, feed) = pipe(None).expect("a pipe");
    let running = serve(dir.path()).time_limit(PATIENCE).stdin(input).start();
    let feeding = thread::spawn(move || File::from(feed).write_all(&stream));
    running.wait_for("socket-init");
    feeding.join().expect("fed").expect("serve reads");
    let mut criu = RestoreClient::connect(dir.path()).expect("the socket is there");
    for index in (0..FILES).rev().step_by(89) {
        let found = criu.read(&name(index)).expect("a reply").expect("it is served");
        assert_eq!(found, content(index).as_bytes());
    }
    criu.read("inventory.img").expect("a reply").expect("it is served");
    drop(criu);
    running.finish().succeeded();
}

/// Each too large for the heap's common pieces. A program may have some 65,000 mappings
/// (`vm.max_map_count`), and as many descriptors at the most.
#[test]
#[ignore = "takes 5 GB of memory: make check-load"]
fn seventy_thousand_files_of_middle_size_are_served() {
    const FILES: usize = 70_000;
    let dir = tempdir().expect("a directory");
    let name = |index: usize| format!("core-{index}.img");
    let content = |index: usize| index.to_le_bytes().repeat(8500);
    let (input, feed) = pipe(None).expect("a pipe");
    let running = serve(dir.path()).time_limit(PATIENCE).stdin(input).start();
    let feeding = thread::spawn(move || {
        let mut feed = File::from(feed);
        // A name, its bytes and its end are three markers.
        let numbered = |files: usize| Writer::new().seq(3 * files as u64);
        for index in 0..FILES {
            let file = numbered(index).file(&name(index), &content(index)).finish();
            feed.write_all(&file).expect("serve reads");
        }
        let end = numbered(FILES).file("inventory.img", b"all").image_eof().finish();
        feed.write_all(&end).expect("serve reads");
    });
    running.wait_for("socket-init");
    feeding.join().expect("fed");
    println!("load: {}: at most {} KiB of memory", running.pid(), peak_memory(&running));
    let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).expect("its maps");
    println!("load: {} mappings", maps.lines().count());
    let mut criu = RestoreClient::connect(dir.path()).expect("the socket is there");
    for index in (0..FILES).rev() {
        let found = criu.read(&name(index)).expect("a reply").expect("it is served");
        assert!(found == content(index), "{}", name(index));
    }
    criu.read("inventory.img").expect("a reply").expect("it is served");
    drop(criu);
    running.finish().succeeded();
}

/// A directory as a stream.
fn joined(directory: &tempfile::TempDir) -> Vec<u8> {
    let files = tests::filters::files_in(directory.path());
    let writer = Writer::new();
    let write = |writer: Writer, (name, content): (&String, &Vec<u8>)| writer.file(name, content);
    files.iter().fold(writer, write).image_eof().finish()
}
