//! What a caller may leave to a filter besides descriptors: signals that are ignored or blocked,
//! an environment, closed standard descriptors; and a kernel that is older than this one.

use std::fs;
use std::path::Path;

use tempfile::tempdir;
use tests::criu::DumpClient;
use tests::filters::Capture;
use tests::pipeline::{Filter, Finished, command, without_call};
use tests::random::Random;
use tests::stream::{Writer, read_stream};

fn image() -> Vec<u8> {
    let content = Random::new(5).bytes(1 << 20);
    Writer::new().file("pages-1.img", &content).file("inventory.img", b"all").image_eof().finish()
}

/// Splits an image to two commands and merges it again, with both filters started by `launcher`.
fn round_trip(dir: &Path, launcher: &[&str]) -> [Finished; 2] {
    let start = |name: &str, command: &str| {
        let filter = Filter::under(launcher, name).progress_apart().current_dir(dir);
        filter.args(["-n", "2", "--filter", command])
    };
    let split = start("shard-split", "cat > $SHARD.img").run(&image());
    let merged = start("shard-merge", "cat $SHARD.img").run(&[]);
    [split, merged]
}

fn goes_round(launcher: &[&str]) {
    let dir = tempdir().expect("a directory");
    let [split, merged] = round_trip(dir.path(), launcher);
    split.succeeded();
    merged.succeeded();
    assert_eq!(read_stream(&merged.stdout), read_stream(&image()), "{launcher:?}");
}

/// Many daemons ignore it, and a program inherits that; then the kernel keeps no statuses.
#[test]
fn commands_are_waited_for_where_sigchld_is_ignored() {
    goes_round(&["env", "--ignore-signal=CHLD"]);
    let dir = tempdir().expect("a directory");
    let split = Filter::under(&["env", "--ignore-signal=CHLD"], "shard-split").progress_apart();
    let split =
        split.current_dir(dir.path()).args(["-n", "2", "--filter", "cat > /dev/null; exit $SHARD"]);
    let finished = split.run(&image());
    assert!(
        finished.refused(1, "a command fails").stderr[0].ends_with("failed with exit status 1")
    );
}

#[test]
fn commands_are_waited_for_with_every_signal_blocked() {
    goes_round(&["env", "--block-signal"]);
}

/// What `command` of a filter prints, when the filter is started by `launcher`.
fn printed(name: &str, launcher: &[&str], command: &str) -> String {
    let dir = tempdir().expect("a directory");
    fs::write(dir.path().join("image"), image()).expect("a file");
    let shard = if name == "shard-split" { "cat > /dev/null" } else { "cat image" };
    let command = format!("({command}) > printed; {shard}");
    let filter = Filter::under(launcher, name).progress_apart().current_dir(dir.path());
    filter.args(["-n", "1", "--filter", &command]).run(&image()).succeeded();
    fs::read_to_string(dir.path().join("printed")).expect("what it printed")
}

/// The lines of `/proc/PID/status` that tell of signals.
const SIGNALS: &str = "grep -E '^Sig(Blk|Ign):' /proc/self/status";

/// What is blocked and what is ignored, but for the two signals that the C library keeps for itself.
fn masks(status: &str) -> Vec<u64> {
    const LIBRARY: u64 = 0b11 << 31;
    let mask = |line: &str| {
        let (_, mask) = line.split_once(':').expect("a name");
        u64::from_str_radix(mask.trim(), 16).expect("a mask") & !LIBRARY
    };
    status.lines().map(mask).collect()
}

#[test]
fn a_command_finds_the_signals_as_the_caller_left_them() {
    let launchers: [&[&str]; 4] = [
        &["env"],
        &["env", "--ignore-signal=CHLD", "--ignore-signal=PIPE", "--ignore-signal=HUP"],
        &["env", "--block-signal=TERM", "--block-signal=USR1"],
        &["env", "--block-signal=CHLD", "--ignore-signal=INT", "--ignore-signal=XFSZ"],
    ];
    for launcher in launchers {
        let (first, rest) = launcher.split_first().expect("a launcher");
        // In the same words: a shell may unblock signals for what it starts.
        let words = format!("({SIGNALS}); cat /dev/null");
        let caller = command(first).args(rest).args(["sh", "-c", &words]).output();
        let caller = String::from_utf8(caller.expect("it runs").stdout).expect("UTF-8");
        for name in ["shard-split", "shard-merge"] {
            let command = printed(name, launcher, SIGNALS);
            assert_eq!(masks(&command), masks(&caller), "{name} under {launcher:?}");
        }
    }
}

#[test]
fn a_command_finds_the_environment_of_the_caller_and_its_own_shard() {
    let launcher = ["env", "SHARD=7", "SHARDS=9", "IMAGE_ID=of another", "MINE=yes"];
    let command = "echo $SHARD $SHARDS $MINE";
    for name in ["shard-split", "shard-merge"] {
        assert_eq!(printed(name, &launcher, command), "0 1 yes\n", "{name}");
    }
}

/// Redirections that leave out some of the standard descriptors, and which these are.
fn closings() -> impl Iterator<Item = (Vec<i32>, String)> {
    (1..8).map(|mask| {
        let closed: Vec<_> = (0..3).filter(|fd| mask >> fd & 1 == 1).collect();
        let redirections = closed.iter().map(|fd| format!("{fd}>&- "));
        (closed.clone(), redirections.collect())
    })
}

/// A file that a filter opens itself must not become one of them, nor be taken for it.
#[test]
fn any_of_the_standard_descriptors_may_be_closed() {
    for (closed, redirections) in closings() {
        let dir = tempdir().expect("a directory");
        fs::write(dir.path().join("image"), image()).expect("a file");
        let status = |name: &str, files: &str, needed: i32, arguments: &[&str]| {
            let commands = format!("exec {files} {redirections}");
            let filter = Filter::after(&commands, name).current_dir(dir.path()).args(arguments);
            let status = filter.start().finish().status.code();
            let expected = if closed.contains(&needed) { 2 } else { 0 };
            assert_eq!(status, Some(expected), "{name} with {redirections}");
            expected == 0
        };
        let read = |name: &str| fs::read(dir.path().join(name)).expect("a file");
        let filter = ["-n", "2", "--filter", "cat > $SHARD.img"];
        if status("shard-split", "<image", 0, &filter) {
            let shards = ["0.img", "1.img"].map(read);
            assert_eq!(tests::stream::read_shards(&shards), read_stream(&image()));
        }
        if status("shard-merge", "3<image >back", 1, &["-s", "3"]) {
            assert!(read_stream(&read("back")) == read_stream(&image()), "{redirections}");
        }
        if status("image-extract", "<image", 0, &["-D", "."]) {
            assert_eq!(read("inventory.img"), b"all", "{redirections}");
        }
        if status("image-extract", "<image >list", 0, &["--verify"]) {
            assert_eq!(read("list"), b"", "{redirections}");
        }
    }
}

#[test]
fn a_dump_goes_on_without_stdin_and_stderr() {
    let dir = tempdir().expect("a directory");
    let capture = Filter::after("exec <&- 2>&-", "criu-sock-capture").arg("-D").arg(dir.path());
    let capture = Capture::start(capture.progress_apart());
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(read_stream(&captured.stdout).expect("an image")["inventory.img"], b"all");
}

/// `pidfd_open` came with Linux 5.3, and `criu dump --stream` runs on older kernels.
#[test]
fn commands_are_waited_for_on_a_kernel_without_pidfd() {
    for error in ["ENOSYS", "EPERM"] {
        let dir = tempdir().expect("a directory");
        let log = dir.path().join("log");
        let Some(strace) = without_call("pidfd_open", error, &log) else {
            return println!(
                "skipped: commands_are_waited_for_on_a_kernel_without_pidfd: no strace"
            );
        };
        let strace: Vec<_> = strace.iter().map(String::as_str).collect();
        let must_be_refused = |what: &str| {
            let said = fs::read_to_string(&log).expect("the log");
            assert!(said.contains("INJECTED"), "{what}: not one call was refused: {said}");
        };
        goes_round(&strace);
        must_be_refused("--filter");

        for name in ["criu-sock-capture", "image-serve", "criu-page-capture"] {
            let filter = Filter::under(&strace, name).progress_apart().arg("-D").arg(dir.path());
            let ended = filter.args(["--", "sh", "-c", "exit 5"]).run(&image());
            must_be_refused(name);
            assert_eq!(ended.status.code(), Some(5), "{name}: {:?}", ended.stderr);
            let said = "failed with exit status 5";
            assert!(ended.stderr[0].ends_with(said), "{name}: {:?}", ended.stderr);
        }
        let command = "until [ -e dumped ]; do sleep 0.01; done";
        let capture = Filter::under(&strace, "criu-sock-capture").current_dir(dir.path());
        let capture = Capture::start(capture.progress_apart().args(["--", "sh", "-c", command]));
        let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
        client.send("inventory.img", b"all").expect("capture reads");
        drop(client);
        fs::write(dir.path().join("dumped"), "").expect("a file");
        capture.finish().succeeded();
        must_be_refused("a dump");
    }
}
