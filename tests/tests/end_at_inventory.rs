//! `criu-sock-capture --end-at-inventory` opposite a CRIU that waits, in its
//! post-dump action script, until the stream is safe.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, pipe};
use tests::filters::{self, Capture};
use tests::pipeline::Filter;
use tests::random::Random;
use tests::stream::{looks_complete, read_stream};

/// Long enough to see that a program goes on waiting.
const A_WHILE: Duration = Duration::from_millis(300);

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn capture(dir: &Path) -> Filter {
    filters::capture(dir).arg("--end-at-inventory")
}

fn connect(dir: &Path) -> DumpClient {
    DumpClient::connect(dir).expect("the socket is there after socket-init")
}

#[test]
fn the_stream_ends_while_criu_waits() {
    let dir = directory();
    let pages = Random::new(1).bytes(300_000);
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("pages-1.img", &pages).expect("capture reads");
    client.send("inventory.img", b"all").expect("capture reads");
    let captured = capture.finish();
    captured.succeeded();
    let files = read_stream(&captured.stdout).expect("a valid stream");
    assert_eq!(files["inventory.img"], b"all");
    assert!(files["pages-1.img"] == pages, "pages-1.img differs");
    drop(client);
}

#[test]
fn without_the_option_the_stream_ends_when_criu_does() {
    let dir = directory();
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("inventory.img", b"all").expect("capture reads");
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for CRIU");
    drop(client);
    capture.finish().succeeded();
}

#[test]
fn a_file_after_the_end_fails_in_criu() {
    let dir = directory();
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("inventory.img", b"all").expect("capture reads");
    capture.finish().succeeded();
    assert!(client.send("late.img", b"lost?").is_err(), "CRIU must learn that it came too late");
}

#[test]
fn the_stream_does_not_end_before_every_file_of_criu() {
    let dir = directory();
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    let mut pages = client.open("pages-1.img").expect("a pipe");
    client.send("inventory.img", b"all").expect("capture reads");
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for pages-1.img");
    pages.write_all(b"the last page").expect("capture reads");
    drop(pages);
    let captured = capture.finish();
    captured.succeeded();
    let files = read_stream(&captured.stdout).expect("a valid stream");
    assert_eq!(files["pages-1.img"], b"the last page");
}

#[test]
fn the_stream_does_not_end_before_an_announced_file_has_come() {
    let dir = directory();
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    let pages = client.open("pages-1.img").expect("a pipe");
    client.send("inventory.img", b"all").expect("capture reads");
    client.request("more.img").expect("capture reads");
    drop(pages);
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for more.img");
    drop(client);
    let captured = capture.finish();
    captured.refused_with_a_place("announced and never sent");
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn the_stream_does_not_end_before_the_external_files() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let capture = Capture::start(capture(dir.path()).arg("-e").arg("fs.tar:20").fd(20, read_end));
    let mut client = connect(dir.path());
    client.send("inventory.img", b"all").expect("capture reads");
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for fs.tar");
    let mut tar = File::from(write_end);
    tar.write_all(b"a tarball").expect("capture reads");
    drop(tar);
    let captured = capture.finish();
    captured.succeeded();
    let files = read_stream(&captured.stdout).expect("a valid stream");
    assert_eq!(files["fs.tar"], b"a tarball");
    drop(client);
}

/// What is in CRIU's pipes then is the memory of a process that may run again.
#[test]
fn a_criu_that_does_not_wait_is_refused() {
    let dir = directory();
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    let mut pages = client.open("pages-1.img").expect("a pipe");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    sleep(A_WHILE);
    let _ = pages.write_all(b"a page of a later moment");
    drop(pages);
    let captured = capture.finish();
    captured.refused_with_a_place("CRIU didn't wait");
    assert!(captured.stderr[0].contains("hung up before the stream had ended"));
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn a_dump_that_fails_is_refused_as_ever() {
    let dir = directory();
    let capture = Capture::start(capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("core-1.img", b"core").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.refused_with_a_place("no inventory");
    assert!(!looks_complete(&captured.stdout));
}
