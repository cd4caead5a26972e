//! Files that aren't CRIU's are woven into the image, and streamed out of it
//! while it is still arriving.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use tempfile::{TempDir, tempdir, tempfile};
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{self, Capture, files_in};
use tests::pipeline::{Filter, PATIENCE, Running, write_until_refused};
use tests::random::Random;
use tests::stream::{Files, Writer, read_stream};

const LENGTH: usize = 1_000_000;

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn content() -> Vec<u8> {
    Random::new(5).bytes(LENGTH)
}

/// A pipe out of which the content comes.
fn content_in_a_pipe() -> std::os::fd::OwnedFd {
    let (read_end, write_end) = pipe(None).expect("a pipe");
    thread::spawn(move || write_until_refused(write_end, &content()));
    read_end
}

/// A dump with this filter: what it wrote.
fn dump_with(dir: &TempDir, filter: Filter) -> Files {
    let capture = Capture::start(filter);
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    client.send("core-1.img", b"core").expect("capture reads");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.succeeded();
    read_stream(&captured.stdout).expect("a valid stream")
}

#[test]
fn a_pipe_is_woven_into_the_image() {
    let dir = directory();
    let capture = filters::capture(dir.path()).args(["-e", "fs.tar:20"]);
    let files = dump_with(&dir, capture.fd(20, content_in_a_pipe()));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["core-1.img", "fs.tar", "inventory.img"]);
    assert!(files["fs.tar"] == content(), "fs.tar differs");
}

#[test]
fn a_regular_file_is_woven_into_the_image() {
    let dir = directory();
    let mut file = tempfile().expect("a file");
    file.write_all(&content()).expect("room");
    file.rewind().expect("a file");
    let capture = filters::capture(dir.path()).args(["-e", "fs.tar:20"]);
    let files = dump_with(&dir, capture.fd(20, file));
    assert!(files["fs.tar"] == content(), "fs.tar differs");
}

#[test]
fn the_last_colon_ends_the_name_and_lists_take_commas_and_repeated_options() {
    let dir = directory();
    let capture = filters::capture(dir.path()).args(["-e", "a:b:1:20,empty:21"]);
    let capture = capture.args(["--ext-file-fds", "second.tar:22"]);
    let capture = capture.fd(20, content_in_a_pipe()).fd(22, content_in_a_pipe());
    let files = dump_with(&dir, capture.fd(21, tempfile().expect("a file")));
    assert!(files["a:b:1"] == content(), "a:b:1 differs");
    assert!(files["second.tar"] == content(), "second.tar differs");
    assert_eq!(files["empty"], b"");
}

/// The image as it arrives: the first half of `fs.tar`, then the rest.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let content = content();
    let (first, second) = content.split_at(LENGTH / 2);
    let begun = Writer::new().file("core-1.img", b"core").name("fs.tar").data(first);
    let whole = begun.clone().name("fs.tar").data(second).file_eof();
    let whole = whole.file("inventory.img", b"all").image_eof().finish();
    let begun = begun.finish();
    let rest = whole[begun.len()..].to_vec();
    (begun, rest)
}

/// Feeds the image in halves: the first half of the external file comes out
/// before the second goes in. `filter` gets it on descriptor 20.
fn streams_while_the_image_arrives(filter: Filter) -> Running {
    let (stdin, feed) = pipe(None).expect("a pipe");
    let (collect, output) = pipe(None).expect("a pipe");
    let running = filter.args(["-e", "fs.tar:20"]).fd(20, output).stdin(stdin).start();
    let mut feed = File::from(feed);
    let mut collect = File::from(collect);
    let (begun, rest) = halves();
    let mut first = vec![0; LENGTH / 2];
    thread::scope(|scope| {
        scope.spawn(|| feed.write_all(&begun).expect("the filter reads"));
        // Held back, this would wait until the filter is killed, and then fail.
        collect.read_exact(&mut first).expect("the half that has arrived");
    });
    let mut second = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| collect.read_to_end(&mut second).expect("the other half"));
        feed.write_all(&rest).expect("the filter reads");
        drop(feed);
    });
    first.extend(second);
    assert!(first == content(), "fs.tar differs");
    running
}

#[test]
fn extract_streams_an_external_file_while_the_image_arrives() {
    let dir = directory();
    streams_while_the_image_arrives(filters::extract(dir.path())).finish().succeeded();
    assert_eq!(files_in(dir.path()).keys().collect::<Vec<_>>(), ["core-1.img", "inventory.img"]);
}

#[test]
fn serve_streams_an_external_file_while_the_image_arrives() {
    let dir = directory();
    let serve = streams_while_the_image_arrives(filters::serve(dir.path()));
    serve.wait_for("socket-init");
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    assert_eq!(client.read("inventory.img").expect("a reply").as_deref(), Some(&b"all"[..]));
    drop(client);
    serve.finish().succeeded();
}

/// The shell holds the socket open too, and whoever reads the file waits for its end.
#[test]
fn the_end_of_an_external_file_shows_on_a_socket_that_others_hold() {
    let (begun, rest) = halves();
    let stream = [begun, rest].concat();
    for name in ["image-extract", "image-serve"] {
        let dir = directory();
        let (mut reader, writer) = UnixStream::pair().expect("a socket pair");
        reader.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let held = OwnedFd::from(writer.try_clone().expect("a socket"));
        let (stdin, feed) = pipe(None).expect("a pipe");
        let filter = Filter::new(name).arg("-D").arg(dir.path()).args(["-e", "fs.tar:20"]);
        let running = filter.fd(20, OwnedFd::from(writer)).stdin(stdin).start();
        let mut received = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| write_until_refused(feed, &stream));
            reader.read_to_end(&mut received).expect("the end of the file");
        });
        assert!(received == content(), "{name}: fs.tar differs");
        drop((held, running));
    }
}

/// An external file that fails is a part of the image that isn't there.
#[test]
fn a_reader_of_an_external_file_that_goes_away_is_an_error() {
    let (begun, rest) = halves();
    let stream = [begun, rest].concat();
    for name in ["image-extract", "image-serve"] {
        let dir = directory();
        let (collect, output) = pipe(None).expect("a pipe");
        drop(collect);
        let filter = Filter::new(name).arg("-D").arg(dir.path()).progress_apart();
        let filter = filter.args(["-e", "fs.tar:20"]).fd(20, output);
        let finished = filter.run(&stream);
        finished.refused_with_a_place("the external file's reader went away");
        assert!(finished.stderr[0].contains("fs.tar"), "{:?}", finished.stderr);
        assert!(!dir.path().join("inventory.img").exists(), "{name}: looks complete");
    }
}
