//! What a script that starts these filters waits for: the progress lines, at
//! the right moments, on the right descriptor; and the counters on SIGUSR1.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir, tempfile};
use tests::criu::{DumpClient, RestoreClient, is_listened_on, pipe};
use tests::filters::{self, Capture};
use tests::malformed::small_stream;
use tests::pipeline::{Filter, Lines, Running, collect_from, shard_sizes, wait_until};
use tests::stream::Writer;

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn connect(dir: &Path) -> DumpClient {
    DumpClient::connect(dir).expect("the socket is there after socket-init")
}

fn small_dump(mut client: DumpClient) {
    client.send("core-1.img", b"core").expect("capture reads");
    client.send("inventory.img", b"all").expect("capture reads");
}

#[test]
fn capture_says_socket_init_then_checkpoint_start_then_one_json_line() {
    let dir = directory();
    let captured = filters::dump(dir.path(), small_dump);
    captured.succeeded();
    assert_eq!(captured.progress.len(), 3, "{:?}", captured.progress);
    assert_eq!(captured.progress[..2], ["socket-init", "checkpoint-start"]);
    assert_eq!(captured.shard_sizes(), [captured.stdout.len() as u64]);
    assert!(captured.stderr.is_empty(), "{:?}", captured.stderr);
}

#[test]
fn the_checkpoint_starts_at_the_first_request_that_is_not_for_cpuinfo() {
    let dir = directory();
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("cpuinfo.img", b"cpu").expect("capture reads");
    sleep(Duration::from_millis(200));
    assert_eq!(capture.running.progress().so_far(), ["socket-init"], "too early");
    let mut core = client.open("core-1.img").expect("a request");
    capture.running.wait_for("checkpoint-start");
    core.write_all(b"core").expect("capture reads");
    drop(core);
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.succeeded();
    let starts = captured.progress.iter().filter(|line| *line == "checkpoint-start").count();
    assert_eq!(starts, 1, "{:?}", captured.progress);
}

#[test]
fn progress_goes_to_standard_error_unless_told_otherwise() {
    let dir = directory();
    let capture = Filter::new("criu-sock-capture").arg("-D").arg(dir.path());
    let capture = Capture::start(capture);
    small_dump(connect(dir.path()));
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(captured.stderr.len(), 3, "{:?}", captured.stderr);
    assert_eq!(captured.stderr[..2], ["socket-init", "checkpoint-start"]);
    shard_sizes(&captured.stderr[2]);
}

#[test]
fn split_and_merge_end_with_the_size_of_each_shard() {
    let stream = small_stream();
    for count in [1, 2, 5] {
        let (split, shards) = filters::split(&stream, count);
        let sizes: Vec<_> = shards.iter().map(|shard| shard.len() as u64).collect();
        assert_eq!(split.succeeded().shard_sizes(), sizes, "shard-split");
        assert_eq!(split.progress.len(), 1, "{:?}", split.progress);
        let merged = filters::merge(&shards);
        assert_eq!(merged.succeeded().shard_sizes(), sizes, "shard-merge");
        assert_eq!(merged.progress.len(), 1, "{:?}", merged.progress);
    }
}

#[test]
fn extract_ends_with_the_size_of_the_stream() {
    let dir = directory();
    let stream = small_stream();
    let extracted = filters::extract(dir.path()).run(&stream);
    assert_eq!(extracted.succeeded().shard_sizes(), [stream.len() as u64]);
    assert_eq!(extracted.progress.len(), 1, "{:?}", extracted.progress);
}

#[test]
fn a_restore_says_both_json_lines_before_socket_init() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let progress = Lines::of(read_end);
    let second = write_end.try_clone().expect("a descriptor");
    let mut shards = tests::stream::deal(&small_stream(), 2, |index| index % 2).into_iter();
    let (inputs, feeds): (Vec<_>, Vec<_>) =
        [(); 2].map(|()| pipe(None).expect("a pipe")).into_iter().unzip();
    for feed in feeds {
        tests::pipeline::write_until_refused(feed, &shards.next().expect("a shard"));
    }
    let (stdin, stdout) = pipe(None).expect("a pipe");
    let serve = Filter::new("image-serve").arg("-D").arg(dir.path()).args(["-p", "9"]);
    let serve = serve.fd(9, second).stdin(stdin).start();
    let merge = Filter::new("shard-merge").args(["-s", "10,11", "-p", "9"]).fd(9, write_end);
    let merge = inputs.into_iter().zip(10..).fold(merge, |merge, (input, fd)| merge.fd(fd, input));
    merge.stdout(stdout).start().finish().succeeded();
    progress.wait_for("socket-init", |line| line == "socket-init");
    let so_far = progress.so_far();
    assert_eq!(so_far.len(), 3, "{so_far:?}");
    assert_eq!(shard_sizes(&so_far[0]).len(), 2, "shard-merge comes first");
    assert_eq!(shard_sizes(&so_far[1]).len(), 1, "image-serve comes second");
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    client.read("inventory.img").expect("a reply");
    drop(client);
    serve.finish().succeeded();
}

#[test]
fn a_progress_reader_that_went_away_is_no_error() {
    let gone = || pipe(None).expect("a pipe").1;
    let to_gone = |name: &str| Filter::new(name).args(["-p", "9"]).fd(9, gone());
    let stream = small_stream();

    let dir = directory();
    let extracted = to_gone("image-extract").arg("-D").arg(dir.path()).run(&stream);
    assert!(extracted.succeeded().stderr.is_empty());

    let shard = tempfile().expect("a file");
    let split = to_gone("shard-split").args(["-s", "10"]).fd(10, shard).run(&stream);
    assert!(split.succeeded().stderr.is_empty());

    let (input, feed) = pipe(None).expect("a pipe");
    tests::pipeline::write_until_refused(feed, &stream);
    let merged = to_gone("shard-merge").args(["-s", "10"]).fd(10, input).run(&[]);
    assert!(merged.succeeded().stderr.is_empty());

    let capture = to_gone("criu-sock-capture").arg("-D").arg(dir.path()).start();
    when_listening(&dir.path().join("streamer-capture.sock"));
    small_dump(connect(dir.path()));
    assert!(capture.finish().succeeded().stderr.is_empty());

    let serve = to_gone("image-serve").arg("-D").arg(dir.path());
    let serve = filters::start_serve(serve, &stream);
    when_listening(&dir.path().join("streamer-serve.sock"));
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    client.read("inventory.img").expect("a reply");
    drop(client);
    assert!(serve.finish().succeeded().stderr.is_empty());
}

/// Without a progress line there is only the socket to wait for.
fn when_listening(socket: &Path) {
    let socket = socket.to_str().expect("a plain name");
    wait_until(socket, || is_listened_on(socket));
}

/// Sends SIGUSR1, and waits for the counters on standard error.
fn counters_of(running: &Running) -> serde_json::Value {
    running.signal_when_caught(Signal::SIGUSR1);
    let is_counters = |line: &str| line.starts_with('{');
    let line = running.stderr().wait_for("a JSON line of counters", is_counters);
    serde_json::from_str(&line).expect("the counters are JSON")
}

#[test]
fn capture_prints_its_counters_on_sigusr1_and_goes_on() {
    let dir = directory();
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = connect(dir.path());
    client.send("core-1.img", b"core").expect("capture reads");
    assert!(counters_of(&capture.running).is_object());
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    capture.finish().succeeded();
}

#[test]
fn the_filters_of_streams_print_their_counters_on_sigusr1_and_go_on() {
    let stream = small_stream();
    let (first, second) = stream.split_at(stream.len() / 2);
    let dir = directory();
    let (shard, to_shard) = pipe(None).expect("a pipe");
    let shard = collect_from(shard);
    let filters = [filters::extract(dir.path()), filters::split_to([to_shard])];
    for filter in filters {
        let (stdin, mut feed) =
            pipe(None).map(|(r, w)| (r, std::fs::File::from(w))).expect("a pipe");
        let running = filter.stdin(stdin).start();
        feed.write_all(first).expect("the filter reads");
        assert!(counters_of(&running).is_object());
        feed.write_all(second).expect("the filter reads");
        drop(feed);
        running.finish().succeeded();
    }
    assert!(!shard.join().expect("a shard").is_empty());
}

#[test]
fn merge_prints_its_counters_on_sigusr1_and_goes_on() {
    let stream = small_stream();
    let (first, second) = stream.split_at(stream.len() / 2);
    let (input, feed) = pipe(None).expect("a pipe");
    let mut feed = std::fs::File::from(feed);
    let (collect, stdout) = pipe(None).expect("a pipe");
    let output = collect_from(collect);
    let running = filters::merge_from([input]).stdout(stdout).start();
    feed.write_all(first).expect("the filter reads");
    assert!(counters_of(&running).is_object());
    feed.write_all(second).expect("the filter reads");
    drop(feed);
    running.finish().succeeded();
    assert!(tests::stream::looks_complete(&output.join().expect("the stream")));
}

#[test]
fn serve_prints_its_counters_on_sigusr1_and_goes_on() {
    let dir = directory();
    let stream = Writer::new().file("inventory.img", b"all").image_eof().finish();
    let serve = filters::start_serve(filters::serve(dir.path()), &stream);
    serve.wait_for("socket-init");
    assert!(counters_of(&serve).is_object());
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    assert_eq!(client.read("inventory.img").expect("a reply").as_deref(), Some(&b"all"[..]));
    drop(client);
    serve.finish().succeeded();
}

/// ssh, started with the same stderr, makes that non-blocking.
#[test]
fn a_line_waits_for_a_slow_reader_of_a_stderr_that_is_not_blocking() {
    let dir = directory();
    let (read_end, write_end) = pipe(Some(4096)).expect("a pipe");
    fcntl(&write_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
    let stderr = write_end.try_clone().expect("a descriptor");
    let mut full = File::from(write_end);
    while full.write(&[b'.'; 4096]).is_ok() {}
    let capture = Filter::new("criu-sock-capture").arg("-D").arg(dir.path());
    let capture = capture.stdout(tempfile().expect("a file")).stderr_to(stderr).start();
    sleep(Duration::from_millis(300));
    drop(full);
    let said = Lines::of(read_end);
    said.wait_for("socket-init", |line| line.ends_with("socket-init"));
    capture.signal(Signal::SIGTERM);
    assert_eq!(capture.finish().status.signal(), Some(Signal::SIGTERM as i32));
}

/// So with a list on standard output, which ssh may share as well.
#[test]
fn a_list_waits_for_a_slow_reader_of_a_stdout_that_is_not_blocking() {
    const FILES: usize = 5000;
    let (read_end, write_end) = pipe(None).expect("a pipe");
    fcntl(&write_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
    let files = (0..FILES).fold(Writer::new(), |image, n| image.file(&format!("{n}.img"), b""));
    let mut image = tempfile().expect("a file");
    image.write_all(&files.image_eof().finish()).expect("room");
    image.rewind().expect("a file");
    let list = Filter::new("image-extract").arg("--list").stdin(image).stdout(write_end).start();
    sleep(Duration::from_millis(300));
    let listed = collect_from(read_end);
    list.finish().succeeded();
    let listed = String::from_utf8(listed.join().expect("the list")).expect("names");
    assert_eq!(listed.lines().count(), FILES);
}
