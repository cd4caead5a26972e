//! Exit status 0 means that every reader has taken all that it was given: a filter ends with its
//! readers, and fails when one goes without.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{self, merge_from, split_to};
use tests::page_server::{Layout, PageClient, task};
use tests::pipeline::{Filter, Running};
use tests::stream::{Writer, looks_complete};

/// Long enough to see that a program goes on waiting.
const A_WHILE: Duration = Duration::from_millis(200);

fn image() -> Vec<u8> {
    Writer::new().file("core-1.img", b"core").file("inventory.img", b"all").image_eof().finish()
}

/// A file that is open for reading.
fn file_of(dir: &Path, bytes: &[u8]) -> File {
    let path = dir.join("input");
    fs::write(&path, bytes).expect("a file");
    File::open(path).expect("the file")
}

/// A filter that has written all that it will to a pipe, and the pipe's other end.
struct Scene {
    running: Running,
    reader: File,
    dir: TempDir,
}

const SCENES: [&str; 8] =
    ["capture", "page capture", "merge", "combine", "split", "split to a FIFO", "extract", "serve"];

fn scene(kind: &str) -> Scene {
    let dir = tempdir().expect("a directory");
    let (reader, writer) = pipe(None).expect("a pipe");
    let stdin = file_of(dir.path(), &image());
    let external = |filter: Filter, writer: OwnedFd| {
        let stream = Writer::new().file("fs.tar", b"a tarball").file("inventory.img", b"all");
        let stdin = file_of(dir.path(), &stream.image_eof().finish());
        filter.args(["-e", "fs.tar:20"]).fd(20, writer).stdin(stdin).start()
    };
    let running = match kind {
        "capture" => {
            let running = filters::capture(dir.path()).stdout(writer).start();
            running.wait_for("socket-init");
            let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
            client.send("inventory.img", b"all").expect("capture reads");
            running
        }
        "page capture" => {
            let (images, socket) = (dir.path().join("images"), dir.path().join("socket"));
            fs::create_dir(&images).expect("a directory");
            let filter = Filter::new("criu-page-capture").progress_apart().arg("-D").arg(&images);
            let running = filter.arg("--socket").arg(&socket).stdout(writer).start();
            running.wait_for("socket-init");
            let mut client = PageClient::unix(&socket, Layout::Long).expect("it listens");
            client.open(task(1)).expect("an answer");
            // It is answered when the reader has all.
            thread::spawn(move || client.close());
            fs::write(images.join("inventory.img"), b"\x16\x31\x31\x58\x03\0\0\0abc")
                .expect("a file");
            running
        }
        "combine" => {
            let input = dir.path().join("input");
            Filter::new("image-combine").progress_apart().arg(input).stdout(writer).start()
        }
        "merge" => merge_from([stdin.into()]).stdout(writer).start(),
        "split" => split_to([writer]).stdin(stdin).start(),
        "split to a FIFO" => {
            let path = dir.path().join("fifo");
            mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
            let split = Filter::new("shard-split").progress_apart().arg(&path).stdin(stdin).start();
            return Scene { running: split, reader: File::open(path).expect("the FIFO"), dir };
        }
        "extract" => external(filters::extract(dir.path()), writer),
        "serve" => external(filters::serve(dir.path()), writer),
        other => panic!("no such scene: {other}"),
    };
    Scene { running, reader: reader.into(), dir }
}

impl Scene {
    /// The restore that `image-serve` waits for.
    fn restore(&self, kind: &str) {
        if kind == "serve" {
            self.running.wait_for("socket-init");
            let mut client = RestoreClient::connect(self.dir.path()).expect("the socket is there");
            assert_eq!(
                client.read("inventory.img").expect("a reply").as_deref(),
                Some(&b"all"[..])
            );
        }
    }
}

#[test]
fn no_filter_ends_before_its_reader_has_all() {
    for kind in SCENES {
        let mut scene = scene(kind);
        sleep(A_WHILE);
        assert!(scene.running.is_running(), "{kind}: ended with bytes in its pipe");
        let mut content = Vec::new();
        scene.reader.read_to_end(&mut content).expect("the pipe");
        assert!(looks_complete(&content) || content == b"a tarball", "{kind}");
        scene.restore(kind);
        scene.running.finish().succeeded();
    }
}

#[test]
fn a_reader_that_goes_without_the_last_bytes_is_an_error() {
    for kind in SCENES {
        let mut scene = scene(kind);
        let mut first = [0; 3];
        scene.reader.read_exact(&mut first).expect("some bytes");
        sleep(A_WHILE);
        drop(scene.reader);
        let finished = scene.running.finish();
        finished.refused_with_a_place(kind);
        assert!(finished.stderr[0].ends_with(": Broken pipe"), "{kind}: {:?}", finished.stderr);
        let is_ready = finished.progress.iter().any(|line| line == "socket-init");
        assert!(!is_ready || kind.ends_with("capture"), "{kind}: CRIU could begin");
        assert!(!scene.dir.path().join("inventory.img").exists(), "{kind}: looks complete");
    }
}

#[test]
fn a_reader_that_has_all_need_not_see_the_end() {
    for kind in SCENES {
        let mut scene = scene(kind);
        let mut content = Vec::new();
        while !looks_complete(&content) && content != b"a tarball" {
            let mut byte = [0];
            scene.reader.read_exact(&mut byte).expect("more");
            content.extend(byte);
        }
        scene.reader = File::open("/dev/null").expect("a file");
        scene.restore(kind);
        scene.running.finish().succeeded();
    }
}

#[test]
fn waiting_for_a_reader_ends_with_a_signal() {
    for kind in SCENES {
        let scene = scene(kind);
        sleep(A_WHILE);
        scene.running.signal(nix::sys::signal::Signal::SIGTERM);
        let status = scene.running.finish().status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{kind}");
    }
}

/// Whoever merges the shards may have to see the end of one before it reads the other.
#[test]
fn each_shard_ends_when_its_own_reader_has_it() {
    let dir = tempdir().expect("a directory");
    // Both get some of it: a pipe holds a third less, unless it may be larger.
    let content = vec![7; 1_500_000];
    let stream = Writer::new().file("pages-1.img", &content).image_eof().finish();
    for order in [[0, 1], [1, 0]] {
        let (from, to): (Vec<_>, Vec<_>) =
            [(); 2].map(|()| pipe(None).expect("a pipe")).into_iter().unzip();
        let stdin = file_of(dir.path(), &stream);
        let running = split_to(to).stdin(stdin).start();
        let mut from: Vec<_> = from.into_iter().map(|fd| Some(File::from(fd))).collect();
        let mut shards = vec![Vec::new(); 2];
        for index in order {
            let mut shard = from[index].take().expect("a shard");
            shard.read_to_end(&mut shards[index]).expect("the shard");
        }
        running.finish().succeeded();
        assert!(tests::stream::read_shards(&shards).expect("an image")["pages-1.img"] == content);
    }
}

#[test]
fn shards_do_not_look_complete_when_one_was_not_read_to_its_end() {
    let dir = tempdir().expect("a directory");
    // More than one pipe holds, and less than two.
    let stream = Writer::new().file("pages-1.img", &vec![7; 1_500_000]).image_eof().finish();
    let (from, to): (Vec<_>, Vec<_>) =
        [(); 2].map(|()| pipe(None).expect("a pipe")).into_iter().unzip();
    let running = split_to(to).stdin(file_of(dir.path(), &stream)).start();
    let mut from = from.into_iter().map(File::from);
    let (mut healthy, dying) = (from.next().expect("a shard"), from.next().expect("a shard"));
    let healthy = thread::spawn(move || {
        let mut content = Vec::new();
        healthy.read_to_end(&mut content).map(|_| content).expect("the shard")
    });
    sleep(A_WHILE);
    assert!(running.is_running(), "ended with bytes in a pipe");
    drop(dying);
    let finished = running.finish();
    assert!(finished.status.success() || finished.status.code() == Some(1));
    let complete = looks_complete(&healthy.join().expect("the shard"));
    assert_eq!(complete, finished.status.success(), "{:?}", finished.stderr);
}

/// What it has left running may hold the pipe for ever.
#[test]
fn a_command_that_ends_without_its_shard_has_failed_whoever_still_has_the_pipe() {
    let dir = tempdir().expect("a directory");
    let split = Filter::new("shard-split").progress_apart().current_dir(dir.path());
    let split =
        split.args(["-n", "1", "--filter", "exec 3<&0; sleep 1000 <&3 2>&- & echo $! > sleeper"]);
    let finished = split.stdin(file_of(dir.path(), &image())).start().finish();
    finished.refused_with_a_place("nobody reads");
    assert!(finished.stderr[0].contains("ended without reading the last "), "{finished:?}");
    let sleeper = fs::read_to_string(dir.path().join("sleeper")).expect("its number");
    let sleeper = nix::unistd::Pid::from_raw(sleeper.trim().parse().expect("a number"));
    let _ = nix::sys::signal::kill(sleeper, nix::sys::signal::Signal::SIGKILL);
}

/// With `--end-at-inventory` CRIU waits: what is in the pipe is the memory of its process.
#[test]
fn a_criu_that_does_not_wait_until_the_last_byte_is_taken_is_refused() {
    let dir = tempdir().expect("a directory");
    let (reader, writer) = pipe(None).expect("a pipe");
    let capture = filters::capture(dir.path()).arg("--end-at-inventory").stdout(writer).start();
    capture.wait_for("socket-init");
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    client.send("inventory.img", b"all").expect("capture reads");
    sleep(A_WHILE);
    assert!(capture.is_running(), "ended with bytes in its pipe");
    drop(client);
    let finished = capture.finish();
    finished.refused_with_a_place("CRIU didn't wait");
    assert!(finished.stderr[0].contains("hung up before the stream had ended"), "{finished:?}");
    drop(reader);
}
