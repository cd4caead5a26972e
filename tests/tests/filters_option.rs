//! `--filter` and `-n`: one shell command a shard, all of which must succeed.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};
use tests::criu::pipe;
use tests::pipeline::{Filter, Finished, wait_until, write_until_refused};
use tests::random::Random;
use tests::stream::{Body, Writer, read_stream};

fn image(length: usize) -> Vec<u8> {
    let content = Random::new(5).bytes(length);
    let name = Body::Filename(b"pages-1.img".to_vec());
    let mut stream = Writer::new().identified_marker(&name, [0xab; 16], 0, 1);
    for chunk in content.chunks(100_000) {
        stream = stream.data(chunk);
    }
    stream.file_eof().image_eof().finish()
}

fn filter(name: &str, dir: &Path, count: usize, command: &str) -> Filter {
    let filter = Filter::new(name).progress_apart().current_dir(dir);
    filter.args(["-n", &count.to_string(), "--filter", command])
}

fn split(dir: &Path, count: usize, command: &str) -> Finished {
    filter("shard-split", dir, count, command).run(&image(3 << 20))
}

fn merge(dir: &Path, count: usize, command: &str) -> Finished {
    filter("shard-merge", dir, count, command).run(&[])
}

/// A directory with `0.img` to `2.img`.
fn shards() -> TempDir {
    let dir = tempdir().expect("a directory");
    split(dir.path(), 3, "cat > $SHARD.img").succeeded();
    dir
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default()
}

#[test]
fn commands_write_the_shards_and_read_them_back() {
    let dir = shards();
    let merged = merge(dir.path(), 3, "cat $SHARD.img");
    merged.succeeded();
    assert_eq!(read_stream(&merged.stdout), read_stream(&image(3 << 20)));
    assert_eq!(merged.shard_sizes().len(), 3);
}

#[test]
fn a_command_knows_its_shard_their_number_and_the_image() {
    let dir = tempdir().expect("a directory");
    let command = "echo $SHARD of $SHARDS of $IMAGE_ID > env.$SHARD; exec cat > $SHARD.img";
    split(dir.path(), 2, command).succeeded();
    for shard in 0..2 {
        let expected = format!("{shard} of 2 of {}\n", "ab".repeat(16));
        assert_eq!(read(dir.path(), &format!("env.{shard}")), expected);
    }
    let command = "echo $SHARD of $SHARDS of ${IMAGE_ID-none} >&2; cat $SHARD.img";
    let merged = merge(dir.path(), 2, command);
    merged.succeeded();
    let mut said = merged.stderr;
    said.sort();
    assert_eq!(said, ["0 of 2 of none", "1 of 2 of none"]);
}

#[test]
fn there_are_as_many_commands_as_cpus_unless_told() {
    let dir = tempdir().expect("a directory");
    let filter = Filter::new("shard-split").progress_apart().current_dir(dir.path());
    let finished = filter.args(["--filter", "cat > $SHARD.img"]).run(&image(10));
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    assert_eq!(finished.succeeded().shard_sizes().len(), cpus);
}

/// The pipes in a listing of descriptors, but for the descriptor with this number and stderr.
fn pipes<'a>(listing: &'a str, own: &str) -> Vec<&'a str> {
    let links = listing.lines().filter_map(|line| line.rsplit_once(" -> "));
    let others = links.filter(|(entry, _)| !entry.ends_with(own) && !entry.ends_with(" 2"));
    others.map(|(_, target)| target).filter(|target| target.contains("pipe:")).collect()
}

#[test]
fn no_descriptor_of_another_shard_leaks_into_a_command() {
    let dir = tempdir().expect("a directory");
    split(dir.path(), 3, "ls -l /proc/self/fd > split.$SHARD; cat > $SHARD.img").succeeded();
    // The shell reads and writes files for a merge, so that its pipe is stdout alone.
    let command = "ls -l /proc/$$/fd > merge.$SHARD; cat $SHARD.img";
    merge(dir.path(), 3, command).succeeded();
    // What the test itself was started with, all have.
    let list = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let list = String::from_utf8(list.expect("ls runs").stdout).expect("UTF-8");
    let known = pipes(&list, " 1");
    for shard in 0..3 {
        for (program, own) in [("split", " 0"), ("merge", " 1")] {
            let listing = read(dir.path(), &format!("{program}.{shard}"));
            assert!(!listing.is_empty());
            let leaked = pipes(&listing, own).into_iter().filter(|pipe| !known.contains(pipe));
            // The shell keeps its stdout at some other number while it writes elsewhere.
            let own_pipe = usize::from(program == "merge");
            assert_eq!(leaked.count(), own_pipe, "{program}: {listing}");
        }
    }
}

/// Commands, and what is said of the one with `SHARD` 1.
const FAILING: [(&str, &str); 7] = [
    ("exit 3", "failed with exit status 3"),
    ("head -c 100000 > /dev/null; exit 4", "failed with exit status 4"),
    ("cat > /dev/null; exit 5", "failed with exit status 5"),
    ("cat > /dev/null; kill -9 $$", "killed by signal 9 (SIGKILL)"),
    ("no-such-command 2> /dev/null", "failed with exit status 127"),
    ("head -c 1000 > /dev/null", "Broken pipe"),
    ("true", "Broken pipe"),
];

#[test]
fn a_command_of_split_that_fails_is_named_and_nothing_is_left() {
    for (failing, said) in FAILING {
        let dir = tempdir().expect("a directory");
        let command = format!(
            "test $SHARD != 1 || {{ {failing}; exit; }}; cat > $SHARD.img; echo > $SHARD.ended"
        );
        let finished = filter("shard-split", dir.path(), 3, &command).run(&image(12 << 20));
        finished.refused_with_a_place(failing);
        let message = &finished.stderr[0];
        assert!(message.starts_with("shard-split: shard 1 (test $SHARD != 1 || "), "{message}");
        assert!(message.ends_with(&format!("...): {said}")), "{failing}: {message}");
        // They were told by the end of file, and could end by themselves.
        assert!(dir.path().join("0.ended").exists() && dir.path().join("2.ended").exists());
    }
}

#[test]
fn a_command_that_ignores_a_small_shard_has_failed_all_the_same() {
    let dir = tempdir().expect("a directory");
    let finished = filter("shard-split", dir.path(), 1, "sleep 0.2").run(&image(10));
    finished.refused_with_a_place("it reads nothing");
    let message = &finished.stderr[0];
    let said = "shard-split: shard 0 (sleep 0.2): ended without reading the last ";
    assert!(message.starts_with(said), "{message}");
}

#[test]
fn a_command_of_merge_that_fails_is_named_and_the_image_does_not_end() {
    let dir = shards();
    let failing = [
        ("exit 3", "failed with exit status 3"),
        ("head -c 100000 1.img; exit 4", "failed with exit status 4"),
        ("cat 1.img; exit 5", "failed with exit status 5"),
        ("cat 1.img; kill -9 $$", "killed by signal 9 (SIGKILL)"),
    ];
    for (failing, said) in failing {
        let command = format!("test $SHARD = 1 || exec cat $SHARD.img; {failing}");
        let finished = merge(dir.path(), 3, &command);
        finished.refused_with_a_place(failing);
        let message = &finished.stderr[0];
        assert!(message.starts_with("shard-merge: shard 1 (test $SHARD = 1"), "{message}");
        assert!(message.ends_with(&format!("): {said}")), "{failing}: {message}");
        assert!(!tests::stream::looks_complete(&finished.stdout), "{failing}: looks complete");
    }
}

/// Whether a process with this word in its environment is left.
fn is_left(word: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.into_iter().any(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == word.as_bytes())
    })
}

#[test]
fn what_a_failed_command_and_its_fellows_have_forked_goes_too() {
    let dir = tempdir().expect("a directory");
    let word = format!("LEFT_BY={}", std::process::id());
    let value = word.split_once('=').expect("a value").1;
    // The first never reads and never ends; the second leaves a child behind, and fails.
    let command = "test $SHARD = 1 || { sleep 1000 | sleep 1000; }; sleep 1000 & exit 7";
    let filter = filter("shard-split", dir.path(), 2, command).env("LEFT_BY", value);
    let finished = filter.run(&image(10));
    let message = &finished.refused_with_a_place("it fails").stderr[0];
    assert!(message.ends_with("failed with exit status 7"), "{message}");
    assert!(!is_left(&word), "something is left running");
}

#[test]
fn signals_reach_the_commands() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = tempdir().expect("a directory");
        let word = format!("LEFT_AFTER={}-{signal}", std::process::id());
        let value = word.split_once('=').expect("a value").1;
        let command = "trap 'echo > caught.$SHARD; exit' TERM INT HUP; echo > ready.$SHARD; \
                       while :; do sleep 0.02; done";
        let (stdin, feed) = pipe(None).expect("a pipe");
        let running = filter("shard-split", dir.path(), 2, command)
            .env("LEFT_AFTER", value)
            .stdin(stdin)
            .start();
        let feeding = std::thread::spawn(move || write_until_refused(feed, &image(8 << 20)));
        wait_until("the commands", || {
            (0..2).all(|shard| dir.path().join(format!("ready.{shard}")).exists())
        });
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32), "{:?}", finished.stderr);
        feeding.join().expect("the feed");
        assert!((0..2).all(|shard| dir.path().join(format!("caught.{shard}")).exists()));
        assert!(!is_left(&word), "{signal}: something is left running");
    }
}

#[test]
fn no_command_starts_for_what_is_no_image() {
    let dir = tempdir().expect("a directory");
    let finished = filter("shard-split", dir.path(), 2, "echo > started").run(b"no image at all");
    finished.refused_with_a_place("no image");
    assert!(!dir.path().join("started").exists());
}

#[test]
fn options_that_do_not_go_together_are_wrong_usage() {
    let wrong: [&[&str]; 5] = [
        &["-n", "2"],
        &["--filter", "cat", "-s", "10"],
        &["--filter", "cat", "a.img"],
        &["--filter", "cat", "-n", "0"],
        &["--filter", "cat", "-n", "many"],
    ];
    for name in ["shard-split", "shard-merge"] {
        for arguments in wrong {
            let (input, _feed) = pipe(None).expect("a pipe");
            let filter = Filter::new(name).args(arguments).fd(10, input);
            filter.run(&[]).refused(2, &arguments.join(" "));
        }
    }
}
