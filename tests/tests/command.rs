//! The command behind `--`: started when CRIU may connect, waited for, and told to end when the
//! filter ends early.
//!
//! The tests are CRIU themselves; the command is a shell that waits until they let it end.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{self, Capture};
use tests::pipeline::{Filter, Running, collect_from, wait_until};
use tests::stream::{Writer, looks_complete, read_stream};

/// Long enough to see that a program goes on waiting.
const A_WHILE: Duration = Duration::from_millis(300);

/// Tells its process id, and whether it got SIGTERM, and ends with the status that it reads.
const COMMAND: &str = r#"trap 'echo TERM >>told; exit 143' TERM
exec 3<>end; echo $$ >pid.new; mv pid.new pid
read status <&3; exit $status"#;

/// A directory of images, which is the current one.
struct Scene(TempDir);

impl Scene {
    fn new() -> Scene {
        let scene = Scene(tempdir().expect("a directory"));
        mkfifo(&scene.file("end"), Mode::from_bits_truncate(0o600)).expect("a FIFO");
        scene
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn says(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Of the command, once it waits to be told: a shell that gets a signal just before it reads
    /// would notice only after that.
    fn pid(&self) -> i32 {
        wait_until("the command runs", || self.file("pid").exists());
        let pid = self.says("pid").trim().parse().expect("a number");
        let of_process = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}"));
        wait_until("the command waits", || {
            let children = of_process(&format!("task/{pid}/children")).unwrap_or_default();
            let stat = of_process("stat").unwrap_or_default();
            children.is_empty() && !stat.contains(") R ")
        });
        pid
    }

    /// Lets the command end.
    fn end(&self, status: i32) {
        let mut end = fs::File::options().read(true).write(true).open(self.file("end"));
        let end = end.as_mut().expect("the FIFO");
        end.write_all(format!("{status}\n").as_bytes()).expect("the command reads");
        // It is there to be read as long as somebody has the FIFO open.
        let pid = self.pid();
        wait_until("the command's end", || is_gone(pid));
    }

    fn capture(&self) -> Filter {
        self.with_command(Filter::new("criu-sock-capture").progress_apart(), COMMAND)
    }

    fn serve(&self) -> Filter {
        self.with_command(Filter::new("image-serve").progress_apart(), COMMAND)
    }

    fn with_command(&self, filter: Filter, command: &str) -> Filter {
        filter.current_dir(self.path()).args(["--", "sh", "-c", command])
    }

    fn has_socket(&self) -> bool {
        let sockets = ["streamer-capture.sock", "streamer-serve.sock"];
        sockets.into_iter().any(|socket| self.file(socket).exists())
    }
}

/// Whether the process has ended. Nobody may have waited for it yet.
fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
}

fn dump(scene: &Scene) -> DumpClient {
    DumpClient::connect(scene.path()).expect("the socket is there after socket-init")
}

fn image() -> Vec<u8> {
    let writer = Writer::new().file("core-1.img", b"core").file("inventory.img", b"all");
    writer.image_eof().finish()
}

fn start_serve(scene: &Scene) -> (Running, RestoreClient) {
    let running = filters::start_serve(scene.serve(), &image());
    running.wait_for("socket-init");
    let client = RestoreClient::connect(scene.path()).expect("the socket is there");
    (running, client)
}

#[test]
fn a_dump_is_complete_when_the_command_has_succeeded() {
    let scene = Scene::new();
    let capture = Capture::start(scene.capture());
    let mut client = dump(&scene);
    client.send("core-1.img", b"core").expect("capture reads");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    scene.pid();
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for the command");
    scene.end(0);
    let captured = capture.finish();
    assert!(captured.succeeded().stderr.is_empty(), "{:?}", captured.stderr);
    let files = read_stream(&captured.stdout).expect("a whole image");
    assert_eq!(files["inventory.img"], b"all");
    assert!(!scene.has_socket());
}

/// CRIU may fail when it has sent all: in its last action script, or when it removes its
/// firewall rules.
#[test]
fn a_command_that_fails_after_the_last_file_makes_no_image() {
    let scene = Scene::new();
    let capture = Capture::start(scene.capture());
    let mut client = dump(&scene);
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    scene.end(7);
    let captured = capture.finish();
    captured.refused(7, "the command's status");
    let expected = "criu-sock-capture: command (sh -c trap 'echo TERM >>told; exit 143' ...): \
                    failed with exit status 7";
    assert_eq!(captured.stderr[0], expected);
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn a_dump_that_fails_is_the_command_s_failure() {
    let scene = Scene::new();
    let capture = Capture::start(scene.capture());
    let mut client = dump(&scene);
    client.send("core-1.img", b"core").expect("capture reads");
    drop(client);
    scene.pid();
    scene.end(1);
    let captured = capture.finish();
    captured.refused(1, "the dump failed");
    assert!(captured.stderr[0].ends_with(": failed with exit status 1"), "{:?}", captured.stderr);
    assert!(!looks_complete(&captured.stdout));
}

/// A wrapper may hide CRIU's failure; the stream tells it all the same.
#[test]
fn a_command_that_succeeds_without_an_image_is_a_failed_dump() {
    let scene = Scene::new();
    let capture = Capture::start(scene.capture());
    drop(dump(&scene));
    scene.end(0);
    let captured = capture.finish();
    captured.refused(1, "no inventory");
    assert!(captured.stderr[0].contains("hung up before inventory.img"), "{:?}", captured.stderr);
}

#[test]
fn the_status_of_a_command_that_a_signal_has_killed_is_the_shell_s() {
    let scene = Scene::new();
    for filter in ["criu-sock-capture", "image-serve"] {
        let filter = Filter::new(filter).progress_apart();
        let killed = scene.with_command(filter, "kill -9 $$").run(&image());
        killed.refused(128 + 9, "killed");
        assert!(killed.stderr[0].ends_with(": killed by signal 9 (SIGKILL)"), "{killed:?}");
        assert!(!looks_complete(&killed.stdout));
        assert!(!scene.has_socket());
    }
}

#[test]
fn a_command_that_cannot_be_started_leaves_nothing_behind() {
    let scene = Scene::new();
    let cases = [("no-such-command", 127, "No such file"), ("./end", 126, "Permission denied")];
    for filter in ["criu-sock-capture", "image-serve"] {
        for (command, status, cause) in cases {
            let filter = Filter::new(filter).progress_apart().current_dir(scene.path());
            let failed = filter.args(["--", command, "dump"]).run(&image());
            failed.refused(status, command);
            let place = format!("command ({command} dump): {cause}");
            assert!(failed.stderr[0].contains(&place), "{:?}", failed.stderr);
            assert!(!looks_complete(&failed.stdout));
            assert!(!scene.has_socket());
        }
    }
}

#[test]
fn a_command_that_ends_without_criu_has_done_nothing() {
    let scene = Scene::new();
    for filter in ["criu-sock-capture", "image-serve"] {
        let filter = Filter::new(filter).progress_apart().current_dir(scene.path());
        let ended = filter.args(["--", "true"]).run(&image());
        ended.refused_with_a_place("true");
        assert!(ended.stderr[0].ends_with("command (true): ended before CRIU had connected"));
        assert!(!looks_complete(&ended.stdout));
    }
}

#[test]
fn the_command_s_output_goes_to_stderr_and_it_has_no_input() {
    let scene = Scene::new();
    for filter in ["criu-sock-capture", "image-serve"] {
        let filter = Filter::new(filter).progress_apart();
        let ran = scene.with_command(filter, "cat; echo out; echo error >&2; exit 3").run(&image());
        assert_eq!(ran.status.code(), Some(3));
        assert_eq!(ran.stderr[..2], ["out", "error"]);
        assert!(!String::from_utf8_lossy(&ran.stdout).contains("out"));
    }
}

/// The first word is the one that the command is found by, and none of the others is an option.
#[test]
fn the_words_of_the_command_are_its_own() {
    let scene = Scene::new();
    let filter = Filter::new("criu-sock-capture").progress_apart().current_dir(scene.path());
    let script = r#"printf '%s\n' "$@""#;
    let words = ["--", "sh", "-c", script, "sh", "-D", "x y", "--", "--help", ""];
    let ran = filter.args(words).run(&[]);
    assert_eq!(ran.stderr[..5], ["-D", "x y", "--", "--help", ""], "{:?}", ran.stderr);
}

/// The signals that are ignored or blocked, whether it may gain privileges, the limits, the
/// environment, the descriptors. No shell stands between: shells change some of it.
const STATE: [&[&str]; 3] =
    [&["cat", "/proc/self/status", "/proc/self/limits"], &["env"], &["ls", "/proc/self/fd"]];

/// The line, if it is of what is inherited.
fn inherited(line: &str) -> Option<String> {
    /// The C library's own signals, 32 and 33, which it makes its own in a program with threads.
    const INTERNAL: u64 = 0b11 << 31;

    if let Some(mask) = line.strip_prefix("SigIgn:") {
        let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask") & !INTERNAL;
        return Some(format!("SigIgn: {mask:x}"));
    }
    let of_status = ["SigBlk", "NoNewPrivs", "Max"];
    let is_variable = line.contains('=') && !line.starts_with("_=");
    let is_descriptor = line.bytes().all(|byte| byte.is_ascii_digit());
    let is_state = of_status.iter().any(|start| line.starts_with(start));
    (is_variable || is_descriptor || is_state).then(|| line.to_owned())
}

#[test]
fn the_command_finds_what_the_filter_has_found() {
    let scene = Scene::new();
    let prepare = "import os, signal, sys, resource
for ignored in signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP: signal.signal(ignored, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGRTMIN])
resource.setrlimit(resource.RLIMIT_NOFILE, (500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.dup2(0, 7)
os.execvp(sys.argv[1], sys.argv[1:])";
    let caller = ["env", "SHARD=5", "python3", "-c", prepare];
    for command in STATE {
        let mut direct = tests::pipeline::command(caller[0]);
        direct.args(&caller[1..]).args(command).stdin(std::process::Stdio::null());
        let direct = direct.current_dir(scene.path()).output().expect("python3");
        let direct = String::from_utf8(direct.stdout).expect("UTF-8");
        let direct: Vec<String> = direct.lines().filter_map(inherited).collect();
        assert!(direct.len() > 3, "{direct:?}");
        for filter in ["criu-sock-capture", "image-serve"] {
            let filter = Filter::under(&caller, filter).current_dir(scene.path());
            let ran = filter.arg("--").args(command).run(&image());
            let found = ran.stderr.iter().filter_map(|line| inherited(line));
            assert_eq!(found.collect::<Vec<_>>(), direct, "{}", ran.name);
        }
    }
    // The kernel keeps no status for a program that ignores SIGCHLD.
    let filter = Filter::under(&caller, "criu-sock-capture");
    let ran = scene.with_command(filter, "exit 5").run(&[]);
    assert_eq!(ran.status.code(), Some(5), "{:?}", ran.stderr);
}

#[test]
fn a_command_that_waits_for_nobody_is_told_by_sigterm() {
    let scene = Scene::new();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = scene.capture().stdout(write_end).start();
    let pid = scene.pid();
    drop(read_end);
    let captured = running.finish();
    captured.refused(1, "the reader of the stream has gone");
    assert_eq!(captured.stderr[0], "criu-sock-capture: stdout: Broken pipe");
    assert!(is_gone(pid), "the command was left behind");
    assert_eq!(scene.says("told"), "TERM\n");
}

/// SIGTERM would end CRIU in the middle of what it does to the tree.
#[test]
fn criu_is_hung_up_on_and_has_time_to_roll_back() {
    let scene = Scene::new();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = scene.capture().stdout(write_end).start();
    running.wait_for("socket-init");
    let mut client = dump(&scene);
    client.send("core-1.img", b"core").expect("capture reads");
    running.wait_for("checkpoint-start");
    drop(read_end);
    assert!(client.was_hung_up_on(), "CRIU would never know");
    let pid = scene.pid();
    sleep(A_WHILE);
    assert!(running.is_running(), "didn't wait for the rollback");
    scene.end(1);
    let captured = running.finish();
    captured.refused(1, "the reader of the stream has gone");
    assert_eq!(captured.stderr[0], "criu-sock-capture: stdout: Broken pipe");
    assert!(is_gone(pid));
    assert_eq!(scene.says("told"), "", "was told by SIGTERM");
}

#[test]
fn a_signal_before_criu_has_connected_is_passed_on_as_sigterm() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scene = Scene::new();
        let capture = Capture::start(scene.capture());
        let pid = scene.pid();
        capture.running.signal(signal);
        let captured = capture.finish();
        assert_eq!(captured.status.signal(), Some(signal as i32), "{:?}", captured.stderr);
        assert!(captured.stderr.is_empty(), "{:?}", captured.stderr);
        assert!(is_gone(pid), "the command was left behind");
        assert_eq!(scene.says("told"), "TERM\n");
        assert!(!scene.has_socket());
    }
}

#[test]
fn a_signal_during_a_dump_lets_criu_roll_back_first() {
    let scene = Scene::new();
    let capture = Capture::start(scene.capture());
    let mut client = dump(&scene);
    client.send("core-1.img", b"core").expect("capture reads");
    capture.running.wait_for("checkpoint-start");
    let pid = scene.pid();
    capture.running.signal(Signal::SIGTERM);
    assert!(client.was_hung_up_on(), "CRIU would never know");
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "didn't wait for the rollback");
    scene.end(1);
    let captured = capture.finish();
    assert_eq!(captured.status.signal(), Some(Signal::SIGTERM as i32), "{:?}", captured.stderr);
    assert!(captured.stderr.is_empty(), "{:?}", captured.stderr);
    assert!(!looks_complete(&captured.stdout));
    assert!(is_gone(pid));
    assert_eq!(scene.says("told"), "", "was told by SIGTERM");
    assert!(!scene.has_socket());
}

/// Then nothing but the end of the filter hangs up on CRIU.
#[test]
fn a_signal_ends_a_dump_whose_reader_has_stalled() {
    let scene = Scene::new();
    let (_read_end, write_end) = pipe(None).expect("a pipe");
    let running = scene.capture().stdout(write_end).start();
    running.wait_for("socket-init");
    let mut client = dump(&scene);
    let mut pages = client.open("pages-1.img").expect("a pipe");
    let stuck = thread::spawn(move || {
        let result = pages.write_all(&vec![7; 8 << 20]);
        (client, result)
    });
    running.wait_for("checkpoint-start");
    sleep(A_WHILE);
    scene.pid();
    running.signal(Signal::SIGTERM);
    let (mut client, result) = stuck.join().expect("CRIU");
    assert!(result.is_err(), "CRIU must learn that nobody reads");
    assert!(client.was_hung_up_on());
    wait_until("the filter has ended", || !running.is_running());
    assert!(!scene.has_socket());
    scene.end(1);
    let captured = running.finish();
    assert_eq!(captured.status.signal(), Some(Signal::SIGTERM as i32), "{:?}", captured.stderr);
    assert_eq!(scene.says("told"), "", "was told by SIGTERM");
}

#[test]
fn a_command_that_does_not_end_is_named() {
    let scene = Scene::new();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let filter = Filter::new("criu-sock-capture").progress_apart();
    let stubborn = "trap '' TERM; exec 3<>end; echo $$ >pid.new; mv pid.new pid; read line <&3";
    let running = scene.with_command(filter, stubborn).stdout(write_end).start();
    let pid = scene.pid();
    drop(read_end);
    wait_until("the filter has ended", || !running.is_running());
    scene.end(0);
    let captured = running.finish();
    assert_eq!(captured.status.code(), Some(1));
    let left = format!(": does not end (process {pid})");
    assert!(captured.stderr[0].ends_with(&left), "{:?}", captured.stderr);
    assert_eq!(captured.stderr[1], "criu-sock-capture: stdout: Broken pipe");
}

#[test]
fn at_the_inventory_the_stream_ends_before_the_command() {
    let scene = Scene::new();
    for status in [0, 9] {
        let _ = fs::remove_file(scene.file("pid"));
        let (read_end, write_end) = pipe(None).expect("a pipe");
        let filter = Filter::new("criu-sock-capture").progress_apart().arg("--end-at-inventory");
        let running = scene.with_command(filter, COMMAND).stdout(write_end).start();
        let stream = collect_from(read_end);
        running.wait_for("socket-init");
        let mut client = dump(&scene);
        client.send("inventory.img", b"all").expect("capture reads");
        // To its end, though CRIU is there and the command runs.
        read_stream(&stream.join().expect("the stream")).expect("a whole image");
        assert!(running.is_running(), "didn't wait for the command");
        drop(client);
        scene.end(status);
        assert_eq!(running.finish().status.code(), Some(status));
    }
}

#[test]
fn a_restore_ends_with_the_command_and_its_socket_before() {
    let scene = Scene::new();
    let (running, mut client) = start_serve(&scene);
    assert_eq!(client.read("inventory.img").expect("a reply").expect("the file"), b"all");
    drop(client);
    wait_until("the socket is gone", || !scene.has_socket());
    scene.pid();
    sleep(A_WHILE);
    assert!(running.is_running(), "didn't wait for the command");
    scene.end(0);
    running.finish().succeeded();
}

/// The stream was read to its end, and what CRIU makes of it is all that tells.
#[test]
fn a_restore_that_criu_gives_up_has_failed() {
    let scene = Scene::new();
    let (running, mut client) = start_serve(&scene);
    assert_eq!(client.read("inventory.img").expect("a reply").expect("the file"), b"all");
    drop(client);
    scene.end(1);
    let served = running.finish();
    served.refused(1, "criu restore failed");
    assert!(served.stderr[0].ends_with(": failed with exit status 1"), "{:?}", served.stderr);
    assert!(!scene.has_socket());
}

#[test]
fn a_signal_during_a_restore_hangs_up_and_waits() {
    let scene = Scene::new();
    let (running, mut client) = start_serve(&scene);
    assert_eq!(client.read("inventory.img").expect("a reply").expect("the file"), b"all");
    let pid = scene.pid();
    running.signal(Signal::SIGTERM);
    // Some answers may come before the signal does.
    while client.read("core-1.img").is_ok() {}
    sleep(A_WHILE);
    assert!(running.is_running(), "didn't wait for CRIU");
    scene.end(1);
    let served = running.finish();
    assert_eq!(served.status.signal(), Some(Signal::SIGTERM as i32), "{:?}", served.stderr);
    assert!(is_gone(pid));
    assert!(!scene.has_socket());
}

#[test]
fn the_command_must_bring_all_connections_that_were_asked_for() {
    let scene = Scene::new();
    let filter = Filter::new("image-serve").progress_apart().args(["--clients", "2"]);
    let running = filters::start_serve(scene.with_command(filter, COMMAND), &image());
    running.wait_for("socket-init");
    let mut client = RestoreClient::connect(scene.path()).expect("the socket is there");
    assert_eq!(client.read("inventory.img").expect("a reply").expect("the file"), b"all");
    drop(client);
    scene.end(0);
    let served = running.finish();
    served.refused(1, "one connection is missing");
    assert!(served.stderr[0].ends_with(": ended before CRIU had connected"), "{served:?}");
}
