//! A shard can be anything that a shell can name: descriptors and operands of
//! every kind, mixed, in any order. A file is there when the image is, or not at
//! all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::tempdir;
use tests::criu::pipe;
use tests::filters;
use tests::pipeline::{Filter, collect_from, wait_until, write_until_refused};
use tests::random::Random;
use tests::stream::{Body, Writer, read_shards, read_stream};

const KINDS: [&str; 9] =
    ["pipe", "file", "append", "unix", "tcp", "path", "fifo path", "socket path", "/dev/fd path"];

fn image() -> Vec<u8> {
    let content = Random::new(9).bytes(6 << 20);
    let named = Writer::new().name("pages-1.img");
    let pages = content.chunks(300_000).fold(named, |writer, chunk| writer.data(chunk));
    pages.file_eof().file("inventory.img", b"all").image_eof().finish()
}

fn tcp() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("its address"));
    (listener.accept().expect("a connection").0.into(), near.expect("a connection").into())
}

fn fifo(path: &Path) {
    mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
}

/// One shard: how the filter is told of it, and what the far side does.
enum Given {
    Fd(OwnedFd),
    Path(PathBuf),
    /// As a shell does for `<(...)` and `>(...)`.
    DevFd(OwnedFd),
}

fn output(kind: &str, path: PathBuf) -> (Given, Box<dyn FnOnce() -> Vec<u8>>) {
    let joined = |handle: JoinHandle<Vec<u8>>| Box::new(move || handle.join().expect("a shard"));
    let open =
        |append: bool| File::options().create(true).write(!append).append(append).open(&path);
    let later = path.clone();
    let read_file = Box::new(move || fs::read(later).expect("the file"));
    let sockets = |(far, near): (OwnedFd, OwnedFd)| {
        // Another program has the socket too, and does not close it.
        let held = near.try_clone().expect("a descriptor");
        let collect = collect_from(far);
        let read = Box::new(move || {
            let content = collect.join().expect("a shard");
            drop(held);
            content
        });
        (Given::Fd(near), read as Box<dyn FnOnce() -> Vec<u8>>)
    };
    match kind {
        "pipe" => {
            let (far, near) = pipe(None).expect("a pipe");
            (Given::Fd(near), joined(collect_from(far)))
        }
        "/dev/fd path" => {
            let (far, near) = pipe(None).expect("a pipe");
            (Given::DevFd(near), joined(collect_from(far)))
        }
        "file" | "append" => (Given::Fd(open(kind == "append").expect("a file").into()), read_file),
        "unix" => sockets(UnixStream::pair().map(|(a, b)| (a.into(), b.into())).expect("a pair")),
        "tcp" => sockets(tcp()),
        "path" => (Given::Path(path), read_file),
        "fifo path" => {
            fifo(&path);
            let far = path.clone();
            (Given::Path(path), joined(thread::spawn(move || fs::read(far).expect("the FIFO"))))
        }
        "socket path" => {
            let listener = UnixListener::bind(&path).expect("a socket");
            let accepted = thread::spawn(move || {
                let mut content = Vec::new();
                let (mut socket, _) = listener.accept().expect("a connection");
                socket.read_to_end(&mut content).expect("the shard");
                content
            });
            (Given::Path(path), joined(accepted))
        }
        other => panic!("no such kind: {other}"),
    }
}

fn input(kind: &str, path: PathBuf, shard: Vec<u8>) -> Given {
    let feed = |(far, near): (OwnedFd, OwnedFd), shard: Vec<u8>| {
        thread::spawn(move || write_until_refused(far, &shard));
        Given::Fd(near)
    };
    match kind {
        "pipe" => feed(pipe(None).map(|(read, write)| (write, read)).expect("a pipe"), shard),
        "/dev/fd path" => {
            let (near, far) = pipe(None).expect("a pipe");
            thread::spawn(move || write_until_refused(far, &shard));
            Given::DevFd(near)
        }
        "unix" => {
            feed(UnixStream::pair().map(|(a, b)| (a.into(), b.into())).expect("a pair"), shard)
        }
        "tcp" => feed(tcp(), shard),
        "fifo path" => {
            fifo(&path);
            let far = path.clone();
            // It comes late: that is not the end of the shard.
            thread::spawn(move || {
                sleep(Duration::from_millis(50));
                fs::write(far, shard).expect("the FIFO");
            });
            Given::Path(path)
        }
        "socket path" => {
            let listener = UnixListener::bind(&path).expect("a socket");
            thread::spawn(move || {
                let (mut socket, _) = listener.accept().expect("a connection");
                socket.write_all(&shard).expect("it reads");
            });
            Given::Path(path)
        }
        "path" => {
            fs::write(&path, shard).expect("a file");
            Given::Path(path)
        }
        _ => {
            fs::write(&path, shard).expect("a file");
            Given::Fd(File::open(&path).expect("a file").into())
        }
    }
}

fn with(filter: Filter, shards: Vec<Given>) -> Filter {
    shards.into_iter().zip(20..).fold(filter, |filter, (shard, fd)| match shard {
        Given::Fd(endpoint) => filter.fd(fd, endpoint).arg("-s").arg(fd.to_string()),
        Given::Path(path) => filter.arg(path),
        Given::DevFd(endpoint) => filter.fd(fd, endpoint).arg(format!("/dev/fd/{fd}")),
    })
}

fn goes_through(kinds: &[&str]) {
    let dir = tempdir().expect("a directory");
    let stream = image();
    let path = |kind: &str, number: usize| dir.path().join(format!("{kind}-{number}"));
    let (outputs, reads): (Vec<_>, Vec<_>) = (0..)
        .zip(kinds)
        .map(|(number, kind)| output(kind, path(&format!("out-{kind}"), number)))
        .unzip();
    let split = with(Filter::new("shard-split").progress_apart(), outputs).run(&stream);
    split.succeeded();
    let shards: Vec<_> = reads.into_iter().map(|read| read()).collect();
    assert!(shards.iter().all(|shard| !shard.is_empty()), "{kinds:?}: a shard got nothing");
    assert_eq!(read_shards(&shards), read_stream(&stream), "{kinds:?}");

    // In another order, which must not matter.
    let inputs = kinds.iter().enumerate().zip(shards).rev();
    let inputs = inputs
        .map(|((number, kind), shard)| input(kind, path(&format!("in-{kind}"), number), shard));
    let inputs = inputs.collect();
    let merged = with(Filter::new("shard-merge").progress_apart(), inputs).run(&[]);
    merged.succeeded();
    assert_eq!(read_stream(&merged.stdout), read_stream(&stream), "{kinds:?}");
}

#[test]
fn every_kind_of_endpoint_carries_shards_alone_and_with_all_others() {
    for kind in KINDS {
        goes_through(&[kind]);
        goes_through(&[kind, kind]);
    }
    goes_through(&KINDS);
}

fn listed(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory").flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn split_into(dir: &Path, operands: &[&str]) -> Filter {
    Filter::new("shard-split").progress_apart().current_dir(dir).args(operands)
}

#[test]
fn a_file_gets_its_name_when_the_image_is_complete_and_not_before() {
    let dir = tempdir().expect("a directory");
    fs::write(dir.path().join("b.img"), b"of yesterday").expect("a file");
    fs::create_dir(dir.path().join("far")).expect("a directory");
    fs::write(dir.path().join("far/c.img"), b"of yesterday").expect("a file");
    symlink("far/c.img", dir.path().join("c.img")).expect("a link");
    let before = |name| fs::read(dir.path().join(name)).expect("it is there") == b"of yesterday";
    let stream = image();
    let operands = ["a.img", "b.img", "c.img"];
    for cut in [0, 100, stream.len() - 1] {
        split_into(dir.path(), &operands).run(&stream[..cut]).refused_with_a_place("truncated");
        assert_eq!(listed(dir.path()), ["b.img", "c.img", "far"], "after {cut} bytes");
        assert!(before("b.img") && before("far/c.img"));
    }

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (stdin, feed) = pipe(None).expect("a pipe");
        let running = split_into(dir.path(), &operands).stdin(stdin).start();
        let mut feed = File::from(feed);
        feed.write_all(&stream[..stream.len() / 2]).expect("it reads");
        let beside = || listed(dir.path()).len() == 3 + 2;
        wait_until("two temporary files beside their targets", beside);
        running.signal(signal);
        assert_eq!(running.finish().status.signal(), Some(signal as i32));
        assert_eq!(listed(dir.path()), ["b.img", "c.img", "far"], "{signal}");
        assert_eq!(listed(&dir.path().join("far")), ["c.img"], "{signal}");
    }

    split_into(dir.path(), &operands).run(&stream).succeeded();
    assert_eq!(listed(dir.path()), ["a.img", "b.img", "c.img", "far"]);
    assert!(dir.path().join("c.img").is_symlink(), "what it leads to is replaced, not the link");
    let merge = Filter::new("shard-merge").progress_apart().current_dir(dir.path());
    let merged = merge.args(["c.img", "a.img", "b.img"]).run(&[]);
    assert_eq!(read_stream(&merged.succeeded_stdout()), read_stream(&stream));
}

trait Stdout {
    fn succeeded_stdout(&self) -> Vec<u8>;
}

impl Stdout for tests::pipeline::Finished {
    fn succeeded_stdout(&self) -> Vec<u8> {
        self.succeeded();
        self.stdout.clone()
    }
}

/// All bytes, then all names: a crash of the system in between leaves the old image, or the new.
#[test]
fn sync_has_every_file_on_the_disk_before_the_first_gets_its_name() {
    const TEST: &str = "sync_has_every_file_on_the_disk_before_the_first_gets_its_name";
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: {TEST}: no strace");
        return;
    }
    let dir = tempdir().expect("a directory");
    let trace = dir.path().join("trace");
    let launcher = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,rename", "-o"];
    let launcher = [&launcher[..], &[trace.to_str().expect("UTF-8")]].concat();
    let split = Filter::under(&launcher, "shard-split").progress_apart().current_dir(dir.path());
    split.args(["--sync", "a.img", "b.img"]).run(&image()).succeeded();
    let trace = fs::read_to_string(trace).expect("strace has written");
    let step = |line: &str| match line {
        line if line.contains("fsync(") && line.contains(".shard-") => "sync file",
        line if line.contains("fsync(") => "sync directory",
        _ => "rename",
    };
    let steps: Vec<&str> = trace.lines().map(step).collect();
    let expected = ["sync file", "sync file", "rename", "rename", "sync directory"];
    assert_eq!(steps[..5], expected, "{trace}");

    for others in [&["-s", "10"][..], &["--filter", "cat"], &[]] {
        let (_collect, output) = pipe(None).expect("a pipe");
        let split = Filter::new("shard-split").progress_apart().arg("--sync").args(others);
        split.fd(10, output).run(&[]).refused(2, "nothing that it could flush");
    }
}

#[test]
fn operands_that_cannot_be_shards_are_refused() {
    let dir = tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    let nowhere = format!("{path}/no/a.img");
    let missing = format!("{path}/missing.img");
    let cases = [
        (
            "shard-split",
            vec!["a.img", "./a.img"],
            2,
            "shard 1 (./a.img): the same file as shard 0 (a.img)",
        ),
        ("shard-split", vec![&path], 1, "Is a directory"),
        ("shard-split", vec![&nowhere], 1, "No such file or directory"),
        ("shard-split", vec!["/dev/ptmx"], 2, "shard 0 (/dev/ptmx): is a terminal"),
        ("shard-merge", vec![&missing], 1, "missing.img): No such file or directory"),
        ("shard-merge", vec![&path], 2, "is not a pipe, a FIFO, a file or a stream socket"),
        ("shard-merge", vec!["/dev/ptmx"], 2, "shard 0 (/dev/ptmx): is a terminal"),
    ];
    for (name, operands, code, said) in cases {
        let filter = Filter::new(name).progress_apart().current_dir(dir.path()).args(&operands);
        let finished = filter.run(&image());
        finished.refused(code, said);
        assert!(finished.stderr[0].ends_with(said), "{:?}", finished.stderr);
        assert!(listed(dir.path()).is_empty(), "{name} {operands:?}: {:?}", listed(dir.path()));
    }
}

/// Shards of the images 1 and 2, each in as many parts as told.
fn set(image_id: u8, count: u64) -> Vec<Vec<u8>> {
    let content = |seq| Body::Filename(format!("{seq}.img").into_bytes());
    (0..count)
        .map(|index| {
            let shard = Writer::new().seq(2 * index);
            let shard = shard.identified_marker(&content(index), [image_id; 16], index, count);
            let shard = shard.file_eof();
            if index + 1 == count { shard.image_eof().finish() } else { shard.finish() }
        })
        .collect()
}

/// The other shards may come much later.
#[test]
fn a_shard_that_says_nothing_among_those_that_do_is_refused_at_once() {
    let silent = Writer::new().seq(4).name("2.img").file_eof().finish();
    let begun = [set(1, 4)[0].clone(), Vec::new(), silent, Vec::new()];
    let (shards, feeds): (Vec<_>, Vec<_>) =
        [(); 4].map(|()| pipe(None).unwrap()).into_iter().unzip();
    let feeds: Vec<_> = feeds.into_iter().map(File::from).collect();
    for (mut feed, shard) in feeds.iter().zip(begun) {
        feed.write_all(&shard).expect("room in a pipe");
    }
    let finished = filters::merge_from(shards).run(&[]);
    drop(feeds);
    let said = "shard 2 (fd 12): does not say what image it belongs to, as the others do";
    finished.refused(1, said);
    assert!(finished.stdout.is_empty(), "wrote {} bytes", finished.stdout.len());
}

#[test]
fn shards_that_do_not_belong_together_are_refused_before_anything_is_written() {
    let (one, two, three) = (set(1, 4), set(2, 4), set(1, 3));
    let silent = Writer::new().seq(4).name("2.img").file_eof().finish();
    let pick = |shards: [&Vec<u8>; 4]| shards.map(Clone::clone).to_vec();
    let cases = [
        (
            pick([&one[0], &one[1], &two[2], &one[3]]),
            "shard 2 (fd 12): belongs to another image than the other shards",
        ),
        (
            vec![one[0].clone(), two[1].clone()],
            "shard 1 (fd 11): belongs to another image than shard 0 (fd 10)",
        ),
        (
            pick([&one[0], &one[1], &one[1], &one[3]]),
            "shard 2 (fd 12): the same shard as shard 1 (fd 11)",
        ),
        (
            one.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, s)| s.clone()).collect(),
            "shard 2 of 4 is missing",
        ),
        (vec![one[3].clone()], "shards 0, 1 and 2 of 4 are missing"),
        (
            pick([&one[0], &three[1], &one[2], &one[3]]),
            "shard 1 (fd 11): is one of 3 shards, and the others are of 4",
        ),
        ([one.clone(), vec![Vec::new()]].concat(), "5 shards were given, and the image has 4"),
        (
            pick([&one[0], &one[1], &silent, &one[3]]),
            "shard 2 (fd 12): does not say what image it belongs to, as the others do",
        ),
    ];
    for (shards, said) in cases {
        let finished = filters::merge(&shards);
        finished.refused(1, said);
        assert_eq!(finished.stderr, [format!("shard-merge: {said}")]);
        assert!(finished.stdout.is_empty(), "{said}: wrote {} bytes", finished.stdout.len());
    }
    let shuffled = pick([&one[2], &one[0], &one[3], &one[1]]);
    filters::merge(&shuffled).succeeded();
    // An empty shard may have been one that received nothing; here it turns out that it was not.
    let emptied = filters::merge(&pick([&one[0], &one[1], &Vec::new(), &one[3]]));
    assert_eq!(emptied.stderr, ["shard-merge: shard 2 of 4 is missing"]);
}

#[test]
fn shards_of_other_programs_merge_with_a_note_under_verbose() {
    let stream = image();
    let shards = tests::stream::deal(&stream, 2, |index| index % 2);
    for (option, notes) in [("-v", 1), ("--progress-fd=2", 0)] {
        let dir = tempdir().expect("a directory");
        let operands = ["a.img", "b.img"];
        for (name, shard) in operands.iter().zip(&shards) {
            fs::write(dir.path().join(name), shard).expect("a file");
        }
        let merge = Filter::new("shard-merge").current_dir(dir.path()).arg(option);
        let merged = merge.args(operands).run(&[]);
        merged.succeeded();
        let note = "shard-merge: the shards do not say what image they belong to";
        let said = merged.stderr.iter().filter(|line| *line == note).count();
        assert_eq!(said, notes, "{:?}", merged.stderr);
        assert_eq!(read_stream(&merged.stdout), read_stream(&stream));
    }
}
