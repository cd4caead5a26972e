//! `criu-run`: a program that survives its machine.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;

use crate::bench::{Bench, pid_of, program, programs, wait_for};

/// Counts, a line each; ends with status 7 after so many, or when there is a file `go`.
pub(crate) const COUNT: &str = r#"n=0; while [ $n -lt "$0" ] && [ ! -e go ]; do n=$((n + 1)); echo $n; sleep 0.02; done; exit 7"#;

/// A `criu-run` in the scratch directory, whose output goes to `out` and whose messages go to `err`.
pub(crate) struct Run {
    pub(crate) child: Child,
}

impl Run {
    /// Starts it by a shell: `script` is what follows `criu-run`.
    pub(crate) fn start(bench: &Bench, script: &str) -> Run {
        let child = shell(bench, &format!("exec criu-run {script} >>out 2>>err")).spawn();
        Run { child: child.expect("start criu-run") }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(pid_of(&self.child), signal).expect("send a signal");
    }

    pub(crate) fn ends(&mut self) -> ExitStatus {
        wait_for("the end of criu-run", || self.child.try_wait().expect("wait for criu-run"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // The program ends with its namespace.
            let below =
                fs::read_to_string(format!("/proc/{0}/task/{0}/children", pid_of(&self.child)));
            let _ = self.child.kill();
            let _ = self.child.wait();
            for pid in below.unwrap_or_default().split_whitespace() {
                let _ = kill(Pid::from_raw(pid.parse().expect("a process id")), Signal::SIGKILL);
            }
        }
    }
}

/// A script for `bash`, in the scratch directory, that finds the programs and CRIU.
pub(crate) fn shell(bench: &Bench, script: &str) -> Command {
    // The program may have no descriptor that connects it with others.
    let close = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                 [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done";
    let mut command = tests::pipeline::command("bash");
    command
        .args(["-c", &format!("{close}; {script}")])
        .current_dir(bench.scratch())
        .env("PATH", path())
        .env("CRIU", std::env::var_os("CRIU").unwrap_or_else(|| "criu".into()))
        .stdin(Stdio::null());
    command
}

fn path() -> String {
    format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default())
}

pub(crate) fn lines(bench: &Bench) -> Vec<u32> {
    let text = fs::read_to_string(bench.scratch().join("out")).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

pub(crate) fn messages(bench: &Bench) -> String {
    fs::read_to_string(bench.scratch().join("err")).unwrap_or_default()
}

/// Waits until the program has counted on by some: it runs.
pub(crate) fn counts_on(bench: &Bench) {
    wait_until(bench, lines(bench).last().copied().unwrap_or(0) + 3);
}

/// Waits until the program has counted so far.
pub(crate) fn wait_until(bench: &Bench, count: u32) {
    wait_for("the count", || (lines(bench).last() >= Some(&count)).then_some(()));
}

#[test]
fn a_program_that_is_evicted_again_and_again_does_its_work_once() {
    let Some(bench) = Bench::set_up("evicted") else { return };
    let script = format!("--image job.img --network-lock skip -- sh -c '{COUNT}' 100000");
    for round in 1..=20 {
        let mut run = Run::start(&bench, &script);
        counts_on(&bench);
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().code(), Some(75), "round {round}: {}", messages(&bench));
    }
    fs::write(bench.scratch().join("go"), "").expect("let it end");
    let mut run = Run::start(&bench, &script);
    assert_eq!(run.ends().code(), Some(7), "{}", messages(&bench));
    let expected: Vec<u32> = (1..=lines(&bench).len() as u32).collect();
    assert_eq!(lines(&bench), expected, "a line is lost or doubled");
    let files = fs::read_dir(bench.scratch()).expect("the directory").flatten();
    let names: Vec<_> = files.map(|file| file.file_name().into_string()).collect();
    assert!(!names.iter().flatten().any(|name| name.starts_with("job.img.new")), "{names:?}");
}

#[test]
fn the_end_of_the_program_is_the_end_of_criu_run() {
    let Some(bench) = Bench::set_up("its_end") else { return };
    for (end, code, signal) in
        [("exit 0", Some(0), None), ("exit 7", Some(7), None), ("kill -SEGV $$", None, Some(11))]
    {
        let script = format!("--image none.img -- sh -c '{end}'");
        let status = Run::start(&bench, &script).ends();
        assert_eq!((status.code(), status.signal()), (code, signal), "{end}: {}", messages(&bench));
        // And after a restore.
        let wait = "until [ -e go ]; do sleep 0.05; done";
        let script =
            format!("--image job.img --network-lock skip -- sh -c 'echo 1; {wait}; {end}'");
        let _ = fs::remove_file(bench.scratch().join("out"));
        let mut run = Run::start(&bench, &script);
        wait_until(&bench, 1);
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().code(), Some(75), "{end}: {}", messages(&bench));
        fs::write(bench.scratch().join("go"), "").expect("let it go on");
        let status = Run::start(&bench, &script).ends();
        assert_eq!((status.code(), status.signal()), (code, signal), "{end}: {}", messages(&bench));
        for file in ["go", "job.img"] {
            fs::remove_file(bench.scratch().join(file)).expect("remove a file");
        }
    }
}

#[test]
fn what_cannot_be_known_starts_nothing() {
    let Some(bench) = Bench::set_up("cannot_be_known") else { return };
    fs::write(bench.scratch().join("broken.img"), "no image").expect("write an image");
    let cases = [
        (123, "--image broken.img", "not restored"),
        (124, "--image no-such/job.img", "no such directory"),
        (
            124,
            "--save cat --load true --exists 'exit 255'",
            "the command of --exists failed (status 255)",
        ),
        (124, "--save cat --load 'exit 3'", "the command of --load failed (status 3)"),
        (123, "--save cat --load 'echo x; exit 3'", "not restored"),
    ];
    for (code, options, words) in cases {
        let _ = fs::remove_file(bench.scratch().join("err"));
        let status = Run::start(&bench, &format!("{options} -- sh -c 'echo 1'")).ends();
        assert_eq!(status.code(), Some(code), "{options}: {}", messages(&bench));
        assert!(messages(&bench).contains(words), "{options}: {}", messages(&bench));
        assert!(lines(&bench).is_empty(), "{options}: the program was started");
    }
    let status = Run::start(&bench, "--image broken.img --fresh -- sh -c 'echo 1'").ends();
    assert_eq!(status.code(), Some(0), "{}", messages(&bench));
    assert!(bench.scratch().join("broken.img").exists(), "the image is not kept");
}

#[test]
fn a_checkpoint_that_fails_leaves_the_program_and_its_signal() {
    let Some(bench) = Bench::set_up("fails_to_leave") else { return };
    // One that cannot be stored, and one that takes too long.
    for options in ["--save 'exit 3'", "--save 'sleep 60' --deadline 1"] {
        let _ = fs::remove_file(bench.scratch().join("out"));
        let options = format!("{options} --load true --network-lock skip");
        let ignoring = format!("{options} --on-failure ignore -- sh -c '{COUNT}' 2000");
        let mut run = Run::start(&bench, &ignoring);
        wait_until(&bench, 10);
        run.signal(Signal::SIGTERM);
        wait_for("the failure", || messages(&bench).contains("no checkpoint").then_some(()));
        let now = *lines(&bench).last().expect("a line");
        wait_until(&bench, now + 10);
        run.signal(Signal::SIGINT);
        assert_eq!(run.ends().signal(), Some(2), "{}", messages(&bench));

        let _ = fs::remove_file(bench.scratch().join("out"));
        let _ = fs::remove_file(bench.scratch().join("err"));
        let mut run = Run::start(&bench, &format!("{options} -- sh -c '{COUNT}' 2000"));
        wait_until(&bench, 10);
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().signal(), Some(15), "{}", messages(&bench));
        let _ = fs::remove_file(bench.scratch().join("err"));
    }
}

#[test]
fn a_snapshot_brings_back_the_files_that_have_grown_since() {
    let Some(bench) = Bench::set_up("grown_since") else { return };
    // It writes a log of its own, which CRIU would refuse when it has grown.
    let count =
        r#"exec 5>>log; n=0; while :; do n=$((n + 1)); echo $n >&5; echo $n; sleep 0.02; done"#;
    let script =
        format!("--image job.img --fs log --every 1 --json --network-lock skip -- sh -c '{count}'");
    let mut run = Run::start(&bench, &script);
    let snapshot = || messages(&bench).contains(r#""event":"snapshot""#).then_some(());
    wait_for("a snapshot", snapshot);
    let now = *lines(&bench).last().expect("a line");
    wait_until(&bench, now + 5);
    run.signal(Signal::SIGKILL);
    run.ends();
    // Nobody is left to end it: the program runs on, with its output.
    let pid = started(&messages(&bench));
    wait_until(&bench, now + 10);
    kill(pid, Signal::SIGKILL).expect("kill the program");
    // It has become a child of this test, which is to reap it.
    wait_for("its end", || {
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });

    let before = lines(&bench).len();
    let mut run = Run::start(&bench, &script);
    wait_for("more lines", || (lines(&bench).len() > before + 5).then_some(()));
    run.signal(Signal::SIGINT);
    run.ends();
    let log = fs::read_to_string(bench.scratch().join("log")).expect("read the log");
    let counted: Vec<u32> = log.lines().map(|line| line.parse().expect("a number")).collect();
    let expected: Vec<u32> = (1..=counted.len() as u32).collect();
    assert_eq!(counted, expected, "{}", messages(&bench));
}

/// The process of a line of JSON that says that the program was started.
fn started(messages: &str) -> Pid {
    let line = messages.lines().find(|line| line.contains(r#""event":"started""#));
    let value: serde_json::Value =
        serde_json::from_str(line.expect("it was started")).expect("JSON");
    Pid::from_raw(value["process"].as_i64().expect("a number") as i32)
}

#[test]
fn two_copies_of_one_image_run_on_one_host() {
    let Some(bench) = Bench::set_up("two_copies") else { return };
    let script = format!("--image job.img --network-lock skip -- sh -c '{COUNT}' 60");
    let mut run = Run::start(&bench, &script);
    wait_until(&bench, 5);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends().code(), Some(75), "{}", messages(&bench));
    let mut copies = [Run::start(&bench, &script), Run::start(&bench, &script)];
    for copy in &mut copies {
        assert_eq!(copy.ends().code(), Some(7), "{}", messages(&bench));
    }
    assert_eq!(lines(&bench).iter().filter(|line| **line == 60).count(), 2);
}

#[test]
fn a_descriptor_that_cannot_be_carried_is_wrong_usage() {
    let Some(bench) = Bench::set_up("cannot_be_carried") else { return };
    let program = program("criu-run");
    let script = format!("exec 5< <(sleep 0); exec {} --image x -- true", program.display());
    let run = Command::new("bash").args(["-c", &script]).current_dir(bench.scratch()).output();
    let run = run.expect("start criu-run");
    assert_eq!(run.status.code(), Some(2));
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("is a pipe, and PROGRAM could not be checkpointed"), "{said}");
}

#[test]
fn waiting_for_the_end_of_a_restored_program_costs_nothing() {
    let Some(bench) = Bench::set_up("costs_nothing") else { return };
    let script = "--image job.img --network-lock skip -- sh -c 'echo 1; exec sleep 1000'";
    let mut run = Run::start(&bench, script);
    wait_until(&bench, 1);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends().code(), Some(75), "{}", messages(&bench));
    let mut run = Run::start(&bench, script);
    let restored = || messages(&bench).contains("goes on from its image").then_some(());
    wait_for("the restore", restored);
    // Longer than what else is waited for after a restore.
    let waiter = children(pid_of(&run.child));
    let before: f64 = waiter.iter().map(|pid| seconds(*pid)).sum();
    std::thread::sleep(Duration::from_secs(5));
    let after: f64 = waiter.iter().map(|pid| seconds(*pid)).sum();
    assert!(after - before < 0.5, "{} s of CPU time", after - before);
    run.signal(Signal::SIGINT);
    assert_eq!(run.ends().signal(), Some(2), "{}", messages(&bench));
}

/// The processes below this one.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids = list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number")));
    pids.flat_map(|pid| [vec![pid], children(pid)].concat()).collect()
}

/// The CPU time of a process so far.
fn seconds(pid: Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a number") / 100.0).sum()
}
