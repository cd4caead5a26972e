//! The data is moved, not copied: no byte of payload passes through the memory of
//! a filter, and the filters stay small however large the image is.

use std::fs;
use std::io::{IoSlice, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::fcntl::{SpliceFFlags, vmsplice};
use tempfile::tempdir;
use tests::criu::{DumpClient, pipe};
use tests::filters::{capture, merge_from, split, split_to};
use tests::pipeline::{Filter, Running, program};
use tests::stream::{Writer, read_stream};

/// `criu-sock-capture | shard-split | shard-merge`, in bash so that `strace` can be put before
/// each; what comes out is discarded by splicing.
const PIPELINE: &str = r#"
set -o pipefail
trace() { strace -f -qq -e trace=read,write,readv,writev,pread64,pwrite64,sendto,recvfrom,sendmsg,recvmsg -o "$1.trace" "$2/$1" "${@:3}"; }
mkfifo a b
trace shard-merge "$1" -s 10,11 10<a 11<b > >(cat >/dev/null) &
trace criu-sock-capture "$1" -D . -p 3 3>progress | trace shard-split "$1" -s 10,11 10>a 11>b
status=$?
wait $! && exit $status
"#;

/// The largest transfer of a marker, a message of CRIU, or a configuration file, in bytes.
const SMALL: u64 = 4096;

#[test]
fn no_payload_passes_through_the_memory_of_a_filter() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no_payload_passes_through_the_memory_of_a_filter: no strace");
        return;
    }
    let dir = tempdir().expect("a directory");
    let programs = program("shard-split");
    let mut bash = Command::new("bash")
        .args(["-c", PIPELINE, "bash"])
        .arg(programs.parent().expect("a directory"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("bash starts");
    let progress = dir.path().join("progress");
    while !fs::read_to_string(&progress).is_ok_and(|lines| lines.contains("socket-init")) {
        assert!(bash.try_wait().expect("bash").is_none(), "the pipeline ended early");
        thread::sleep(std::time::Duration::from_millis(10));
    }
    dump(dir.path(), 64, || ());
    assert!(bash.wait().expect("bash").success());

    for filter in ["criu-sock-capture", "shard-split", "shard-merge"] {
        let trace = fs::read_to_string(dir.path().join(format!("{filter}.trace")));
        let trace = trace.expect("strace has written");
        let largest = trace.lines().filter_map(transferred).max();
        assert!(largest.is_some_and(|bytes| bytes <= SMALL), "{filter}: {largest:?} bytes at once");
    }
}

#[test]
fn a_merge_of_small_files_reads_less_than_once_a_file() {
    const FILES: usize = 500;

    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("skipped: a_merge_of_small_files_reads_less_than_once_a_file: no strace");
        return;
    }
    let dir = tempdir().expect("a directory");
    let small = |stream: Writer, index| stream.file(&format!("core-{index}.img"), &[7; 300]);
    let stream = (0..FILES).fold(Writer::new(), small).file("inventory.img", b"all").image_eof();
    let stream = stream.finish();
    let (finished, shards) = split(&stream, 2);
    finished.succeeded();
    let path = |index| dir.path().join(format!("{index}.shard"));
    (0..).zip(&shards).for_each(|(index, it)| fs::write(path(index), it).expect("a file"));
    let trace = dir.path().join("trace");
    let launcher = ["strace", "-qq", "-e", "trace=read", "-o", trace.to_str().expect("a path")];
    let merge = Filter::under(&launcher, "shard-merge").arg(path(0)).arg(path(1)).run(b"");
    assert_eq!(read_stream(&merge.stdout), read_stream(&stream));
    let reads = fs::read_to_string(trace).expect("strace has written").lines().count();
    assert!(reads < FILES, "{reads} reads");
}

/// What `read(3, …) = 4096` says.
fn transferred(line: &str) -> Option<u64> {
    line.rsplit_once(" = ")?.1.trim().parse().ok()
}

#[test]
fn memory_stays_small_whatever_the_size_of_the_image() {
    let dir = tempdir().expect("a directory");
    let joint = || pipe(None).expect("a pipe");
    let (captured, into_split) = (joint(), joint());
    let shards: Vec<(OwnedFd, OwnedFd)> = (0..4).map(|_| joint()).collect();
    let (from, to): (Vec<_>, Vec<_>) = shards.into_iter().unzip();
    drop(into_split);

    let capture = capture(dir.path()).stdout(captured.1).start();
    let split = split_to(to).stdin(captured.0).start();
    let discard = fs::OpenOptions::new().write(true).open("/dev/null").expect("/dev/null");
    let merge = merge_from(from).stdout(OwnedFd::from(discard)).start();
    capture.wait_for("socket-init");
    dump(dir.path(), 1024, || {
        for filter in [&capture, &split, &merge] {
            let peak = peak_memory(filter);
            assert!(peak <= 5_000_000, "{filter:?} took {peak} bytes");
        }
    });
    for filter in [capture, split, merge] {
        filter.finish().succeeded();
    }
}

/// The most memory that the program has had, in bytes.
fn peak_memory(program: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Dumps a file of so many MiB as CRIU does, by reference. `before_the_end` is called when it has
/// gone through, and the programs still run.
fn dump(dir: &Path, megabytes: usize, before_the_end: impl FnOnce()) {
    let memory = vec![7_u8; 1 << 20];
    let mut client = DumpClient::connect(dir).expect("the socket is there");
    client.send("core-1.img", b"core").expect("a small file");
    let pages = client.open("pages-1.img").expect("a pipe");
    for _ in 0..megabytes {
        let mut left = memory.as_slice();
        while !left.is_empty() {
            let moved = vmsplice(&pages, &[IoSlice::new(left)], SpliceFFlags::empty());
            left = &left[moved.expect("the pipe takes it")..];
        }
    }
    drop(pages);
    let mut inventory = client.open("inventory.img").expect("a pipe");
    before_the_end();
    inventory.write_all(b"inventory").expect("a small file");
}
