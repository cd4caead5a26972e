//! `criu-image-streamer`: the filters behind the command line of criu-image-streamer 1.0.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{FIRST_SHARD_FD, files_in, shard_fds};
use tests::pipeline::{Filter, Finished, Running, collect_from, wait_until, write_until_refused};
use tests::stream::{Files, read_stream};

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn streamer(dir: &Path) -> Filter {
    Filter::new("criu-image-streamer").arg("-D").arg(dir).progress_apart()
}

/// Gives it these as its shards, 10, 11 and so on.
fn with_shards(filter: Filter, shards: Vec<OwnedFd>) -> Filter {
    let count = shards.len();
    let filter =
        shards.into_iter().zip(FIRST_SHARD_FD..).fold(filter, |it, (shard, fd)| it.fd(fd, shard));
    filter.arg("-s").arg(shard_fds(count))
}

/// Starts `capture` into so many shards.
fn start_capture(filter: Filter, count: usize) -> (Running, Vec<JoinHandle<Vec<u8>>>) {
    let (outputs, shards): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (read_end, write_end) = pipe(None).expect("a pipe");
            (write_end, collect_from(read_end))
        })
        .unzip();
    let running = with_shards(filter.arg("capture"), outputs).start();
    running.wait_for("socket-init");
    (running, shards)
}

fn dump(dir: &Path) {
    let mut client = DumpClient::connect(dir).expect("the socket is there after socket-init");
    client.send("core-1.img", b"core").expect("capture reads");
    client.send("pages-1.img", &vec![7; 3_000_000]).expect("capture reads");
    client.send("inventory.img", b"all").expect("capture reads");
}

fn image() -> Files {
    let files = [("core-1.img", b"core".to_vec()), ("pages-1.img", vec![7; 3_000_000])];
    let files = files.into_iter().chain([("inventory.img", b"all".to_vec())]);
    files.map(|(name, content)| (name.to_owned(), content)).collect()
}

fn captured(count: usize) -> (Finished, Vec<Vec<u8>>) {
    let dir = directory();
    let (running, shards) = start_capture(streamer(dir.path()), count);
    dump(dir.path());
    let finished = running.finish();
    finished.succeeded();
    assert!(files_in(dir.path()).is_empty(), "left something behind");
    (finished, shards.into_iter().map(|shard| shard.join().expect("a shard")).collect())
}

/// Starts `serve` or `extract` of these shards.
fn start_from(filter: Filter, action: &str, shards: &[Vec<u8>]) -> Running {
    let feed = |shard: &Vec<u8>| {
        let (read_end, write_end) = pipe(None).expect("a pipe");
        let shard = shard.clone();
        std::thread::spawn(move || write_until_refused(write_end, &shard));
        read_end
    };
    with_shards(filter.arg(action), shards.iter().map(feed).collect()).start()
}

#[test]
fn a_dump_goes_through_any_number_of_shards_into_a_restore_and_a_directory() {
    for count in [1, 3] {
        let (dumped, shards) = captured(count);
        assert_eq!(dumped.progress.len(), 3, "{:?}", dumped.progress);
        assert_eq!(dumped.progress[..2], ["socket-init", "checkpoint-start"]);
        let sizes: Vec<u64> = shards.iter().map(|shard| shard.len() as u64).collect();
        assert_eq!(dumped.shard_sizes(), sizes);

        let dir = directory();
        let serving = start_from(streamer(dir.path()), "serve", &shards);
        serving.wait_for("socket-init");
        let mut client = RestoreClient::connect(dir.path()).expect("a socket");
        for (name, content) in image() {
            assert!(client.read(&name).expect("an answer").expect(&name) == content, "{name}");
        }
        drop(client);
        let served = serving.finish();
        served.succeeded();
        assert_eq!(served.shard_sizes(), sizes);
        assert!(served.progress[0].starts_with('{'), "{:?}", served.progress);
        assert_eq!(served.progress[1..], ["socket-init"]);

        // The directory is made.
        let files = dir.path().join("a/b");
        let extracted = start_from(streamer(&files), "extract", &shards).finish();
        extracted.succeeded();
        assert_eq!(extracted.shard_sizes(), sizes);
        assert_eq!(extracted.progress.len(), 1, "{:?}", extracted.progress);
        assert!(files_in(&files) == image());
    }
}

/// A program that waits for this line uses the files then.
#[test]
fn the_line_of_extract_comes_when_the_files_are_there() {
    let (_, shards) = captured(2);
    let dir = directory();
    let (slow, tar) = pipe(None).expect("a pipe");
    let filter = streamer(dir.path()).arg("-e").arg("pages-1.img:20").fd(20, tar);
    let running = start_from(filter, "extract", &shards);
    // The other files are there when this one is still being written.
    wait_until("the files", || fs::read_dir(dir.path()).expect("a directory").count() > 0);
    assert!(running.progress().so_far().is_empty(), "{:?}", running.progress().so_far());
    let pages = collect_from(slow);
    running.finish().succeeded();
    assert_eq!(pages.join().expect("the file").len(), 3_000_000);
}

#[test]
fn external_files_are_added_to_the_image() {
    let dir = directory();
    let (tar, feed) = pipe(None).expect("a pipe");
    let filter = streamer(dir.path()).arg("--ext-file-fds=fs:tar:20").fd(20, tar);
    let (running, shards) = start_capture(filter, 2);
    write_until_refused(feed, b"an archive");
    dump(dir.path());
    running.finish().succeeded();
    let shards: Vec<_> = shards.into_iter().map(|it| it.join().expect("a shard")).collect();
    let files = directory();
    start_from(streamer(files.path()), "extract", &shards).finish().succeeded();
    assert_eq!(fs::read(files.path().join("fs:tar")).expect("the file"), b"an archive");
}

/// As they are unless others are named.
#[test]
fn standard_input_and_output_may_be_shards_among_others() {
    let dir = directory();
    let (first, stdout) = pipe(None).expect("a pipe");
    let (second, tenth) = pipe(None).expect("a pipe");
    let filter = streamer(dir.path()).args(["capture", "-s", "1", "--shard-fds=10"]);
    let running = filter.stdout(stdout).fd(10, tenth).start();
    running.wait_for("socket-init");
    let collected = [collect_from(first), collect_from(second)];
    dump(dir.path());
    running.finish().succeeded();
    let [first, second] = collected.map(|it| it.join().expect("a shard"));

    let extract = streamer(dir.path()).args(["-s0,10", "extract"]);
    let (tenth, feed) = pipe(None).expect("a pipe");
    let feeding = std::thread::spawn(move || write_until_refused(feed, &second));
    extract.fd(10, tenth).run(&first).succeeded();
    feeding.join().expect("a shard is fed");
    assert!(files_in(dir.path()) == image());
}

#[test]
fn one_shard_is_the_stream() {
    let dir = directory();
    let (collect, output) = pipe(None).expect("a pipe");
    let running = streamer(dir.path()).arg("capture").stdout(output).start();
    running.wait_for("socket-init");
    let collected = collect_from(collect);
    dump(dir.path());
    running.finish().succeeded();
    assert!(read_stream(&collected.join().expect("the stream")) == Ok(image()));
}

#[test]
fn what_a_filter_could_not_do_is_the_status() {
    let dir = directory();
    let (running, shards) = start_capture(streamer(dir.path()), 2);
    let mut client = DumpClient::connect(dir.path()).expect("a socket");
    client.send("core-1.img", b"core").expect("capture reads");
    drop(client);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    assert!(finished.stderr.iter().any(|line| line.starts_with("criu-sock-capture: ")));
    assert!(!finished.progress.iter().any(|line| line.starts_with('{')), "{:?}", finished.progress);
    let shards: Vec<_> = shards.into_iter().map(|it| it.join().expect("a shard")).collect();

    let extracted = start_from(streamer(dir.path()), "extract", &shards).finish();
    assert_eq!(extracted.status.code(), Some(1), "{:?}", extracted.stderr);
    assert!(extracted.progress.is_empty(), "{:?}", extracted.progress);
}

#[test]
fn a_signal_ends_all_of_it_and_the_status_says_which() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = directory();
        let (running, shards) = start_capture(streamer(dir.path()), 2);
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32), "{:?}", finished.stderr);
        // The filters have ended, or the shards would have none.
        shards.into_iter().for_each(|shard| drop(shard.join()));
        assert!(files_in(dir.path()).is_empty(), "{signal}: a socket is left");
    }
}

#[test]
fn the_filters_end_with_it_when_it_is_killed() {
    let dir = directory();
    let (running, shards) = start_capture(streamer(dir.path()), 2);
    running.signal(Signal::SIGKILL);
    running.finish();
    shards.into_iter().for_each(|shard| drop(shard.join()));
    wait_until("the filters' end", || files_in(dir.path()).is_empty());
}

#[test]
fn a_signal_that_was_ignored_stays_so() {
    let dir = directory();
    let filter = Filter::after("trap '' INT", "criu-image-streamer");
    let filter = filter.arg("-D").arg(dir.path()).progress_apart();
    let (running, shards) = start_capture(filter, 2);
    running.signal(Signal::SIGINT);
    dump(dir.path());
    running.finish().succeeded();
    shards.into_iter().for_each(|shard| drop(shard.join()));
}

#[test]
fn children_whose_end_the_caller_ignores_are_waited_for() {
    let dir = directory();
    let ignoring = "import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])";
    let filter = Filter::under(&["python3", "-c", ignoring], "criu-image-streamer");
    let filter = filter.arg("-D").arg(dir.path()).progress_apart();
    let (running, shards) = start_capture(filter, 2);
    dump(dir.path());
    running.finish().succeeded();
    shards.into_iter().for_each(|shard| drop(shard.join()));
}

#[test]
fn wrong_usage_is_found_before_anything_is_touched() {
    let wrong: [(&[&str], &str); 14] = [
        (&[], "<COMMAND>"),
        (&["-D", "DIR"], "<COMMAND>"),
        (&["capture"], "--images-dir"),
        (&["-D", "DIR", "dump"], "dump"),
        (&["-D", "DIR", "capture", "serve"], "serve"),
        (&["-D", "DIR", "--no-such-option", "capture"], "--no-such-option"),
        (&["-D", "DIR", "-s", "30", "capture"], "shard 0 (fd 30): is not open"),
        (&["-D", "DIR", "-s", "11,11", "capture"], "descriptor 11 is already used"),
        (&["-D", "DIR", "-s", "x", "capture"], "x"),
        (&["-D", "DIR", "-s", "11", "-p", "30", "capture"], "progress (fd 30)"),
        (&["-D", "DIR", "-s", "11", "-e", "fs.tar", "capture"], "NAME:FD"),
        (&["-D", "DIR", "-s", "11", "-e", "a:30", "capture"], "external file a (fd 30)"),
        (&["-D", "DIR", "-s", "31", "serve"], "shard 0 (fd 31): is a terminal"),
        (&["-D", "DIR", "--tcp-listen-remap", "1:2", "extract"], "goes with serve only"),
    ];
    for (words, mentioned) in wrong {
        let dir = directory();
        let images = dir.path().join("images");
        let path = images.to_str().expect("UTF-8");
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "DIR" { path } else { word }).collect();
        let (_collect, output) = pipe(None).expect("a pipe");
        let terminal =
            File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal");
        let filter = Filter::new("criu-image-streamer").args(&words);
        let finished = filter.fd(11, output).fd(31, terminal).run(&[]);
        finished.refused(2, &words.join(" "));
        assert!(finished.stderr[0].contains(mentioned), "{words:?}: {:?}", finished.stderr);
        assert!(!images.exists(), "{words:?}: touched the directory");
    }
}

#[test]
fn a_filter_that_is_not_installed_is_named() {
    let dir = directory();
    let alone = dir.path().join("criu-image-streamer");
    fs::copy(tests::pipeline::program("criu-image-streamer"), &alone).expect("a copy");
    let alone = alone.to_str().expect("UTF-8");
    let shell = format!("PATH=; exec {alone} \"$@\"");
    let filter = Filter::under(&["/bin/sh", "-c", &shell], "criu-image-streamer");
    let finished = filter.arg("-D").arg(dir.path()).arg("capture").run(&[]);
    finished.refused(1, "no filter");
    let expected =
        "criu-image-streamer: criu-sock-capture: neither beside this command nor in PATH";
    assert_eq!(finished.stderr, [expected]);
}
