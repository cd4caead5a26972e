//! `criu-migrate`: the process is killed here only when it runs there.
//!
//! The other host is another PID namespace on the same machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tests::criu::is_listened_on;

use crate::bench::{Bench, pid_of, skip, wait_for};
use crate::pipeline::Pipeline;
use crate::safety::{SIGNALS, SOON, must_have_no_temporary_files, processes};
use crate::stamper::Stamper;

/// The other host; all of it ends with it.
struct Host {
    unshare: Child,
    init: i32,
}

impl Host {
    fn start() -> Host {
        // Its first process reaps what is restored there and dies.
        let unshare = Command::new("unshare")
            .args(["--pid", "--mount-proc", "--fork", "--kill-child"])
            .args(["bash", "-c", "while :; do sleep 1; done"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start unshare");
        let children = format!("/proc/{0}/task/{0}/children", pid_of(&unshare));
        let init = wait_for("the other host", || {
            let first: i32 = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            let arguments = fs::read(format!("/proc/{first}/cmdline")).ok()?;
            arguments.starts_with(b"bash").then_some(first)
        });
        Host { unshare, init }
    }

    /// The beginning of a command line that runs there.
    fn enter(&self) -> String {
        format!("nsenter -t {} -p -m", self.init)
    }

    /// The processes of criu-migrate there, with their names.
    fn processes(&self) -> Vec<(i32, String)> {
        let root = PathBuf::from(format!("/proc/{}/root/proc", self.init));
        let entries = fs::read_dir(&root).expect("list the processes there").flatten();
        // Not the first one, nor what only waits to be reaped.
        let entries = entries.filter(|entry| entry.file_name() != "1");
        let entries = entries.filter(|entry| entry.path().join("exe").exists());
        let ours = ["bash", "criu", "image-", "shard-merge"];
        let named = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let is_ours = ours.iter().any(|prefix| name.starts_with(prefix));
            is_ours.then(|| (pid, name.trim().to_owned()))
        });
        named.collect()
    }

    /// Sends a signal to one of them there.
    fn signal(&self, pid: i32, signal: Signal) {
        let kill = format!("{} kill -{} {pid}", self.enter(), signal as i32);
        let status = Command::new("sh").args(["-c", &kill]).status().expect("start nsenter");
        assert!(status.success(), "{kill}: {status}");
    }

    /// Fails the test unless criu-migrate soon has nothing there any more.
    fn must_be_clean(&self, case: &str) {
        let since = Instant::now();
        while !self.processes().is_empty() {
            assert!(since.elapsed() < SOON, "{case}: there are {:?} there", self.processes());
            sleep(Duration::from_millis(20));
        }
    }

    /// Whether a process with this number is there.
    fn has(&self, pid: i32) -> bool {
        Path::new(&format!("/proc/{}/root/proc/{pid}/exe", self.init)).exists()
    }

    /// Fails the test if a process with this number stays there. What CRIU kills when its restore
    /// fails may be seen for a moment.
    fn must_not_have(&self, pid: i32, case: &str) {
        let since = Instant::now();
        while self.has(pid) {
            assert!(since.elapsed() < SOON, "it is there too: {case}");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
        // It ends when all that was in it has been reaped, and what had come
        // from outside is a child of this process.
        for _ in 0..500 {
            if !matches!(self.unshare.try_wait(), Ok(None)) {
                return;
            }
            reap_orphans();
            sleep(Duration::from_millis(20));
        }
    }
}

/// Reaps the children of this process that have ended.
fn reap_orphans() {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    for child in children.collect::<String>().split_whitespace() {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        if let (true, Ok(child)) = (status.contains("State:\tZ"), child.parse()) {
            let _ = waitpid(Pid::from_raw(child), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// The other host in messages, where a command connects.
const THERE: &str = "the other end";

fn migrate(bench: &Bench, pid: i32, words: &str) -> Pipeline {
    let script =
        format!("export TMPDIR=$PWD; exec criu-migrate -t {pid} --network-lock skip {words}");
    Pipeline::start(bench, "migrate", &script)
}

/// Fails the test unless the process has moved, and goes on there.
fn must_move(
    bench: &Bench,
    host: &Host,
    stamper: &mut Stamper,
    pipeline: &mut Pipeline,
    name: &str,
) {
    pipeline.must_succeed();
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    let end = format!("; process {} is gone here, and runs at {name}", stamper.pid());
    assert!(last.starts_with("criu-migrate: done: ") && last.ends_with(&end), "{messages}");
    stamper.must_be_gone();
    assert!(host.has(stamper.pid()), "not there");
    stamper.must_run();
    wait_for("no process of a pipeline", || processes(bench).is_empty().then_some(()));
    host.must_be_clean("success");
    must_have_no_temporary_files(bench);
}

#[test]
fn a_process_moves_into_another_pid_namespace() {
    let Some(bench) = Bench::set_up("another_pid_namespace") else {
        return;
    };
    let host = Host::start();
    let mut stamper = Stamper::start(&bench, 64);
    let command = format!("-- '{} $RECEIVE'", host.enter());
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    must_move(&bench, &host, &mut stamper, &mut pipeline, THERE);
}

#[test]
fn a_process_moves_over_three_connections() {
    let Some(bench) = Bench::set_up("three_connections") else {
        return;
    };
    let host = Host::start();
    let mut stamper = Stamper::start(&bench, 64);
    let command = format!("-n 3 -- '{} $RECEIVE'", host.enter());
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    must_move(&bench, &host, &mut stamper, &mut pipeline, THERE);
}

#[test]
fn a_process_moves_through_any_program_that_connects() {
    let name = "any_program";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    if Command::new("socat").arg("-V").output().is_err() {
        skip::<()>(name, "there is no socat");
        return;
    }
    let host = Host::start();
    let mut stamper = Stamper::start(&bench, 64);
    // Listens there, without knowing who comes.
    let enter = host.enter();
    let script = format!("exec socat UNIX-LISTEN:door EXEC:'{enter} criu-migrate --receive'");
    let _door = Pipeline::start(&bench, "door", &script);
    wait_for("the door", || is_listened_on("door").then_some(()));
    let mut pipeline = migrate(&bench, stamper.pid(), "-- 'socat - UNIX:door'");
    must_move(&bench, &host, &mut stamper, &mut pipeline, THERE);
}

/// Fails the test unless the migration fails soon, for this reason, and the process runs on here
/// and not there.
fn must_stay(
    bench: &Bench,
    host: &Host,
    stamper: &Stamper,
    (case, reason): (&str, &str),
    pipeline: &mut Pipeline,
) {
    let since = Instant::now();
    assert_eq!(pipeline.status(), 1, "{case}: {}", pipeline.messages());
    assert!(since.elapsed() < SOON, "{case}: took {:?}", since.elapsed());
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("criu-migrate: FAILED: {reason}")), "{case}: {messages}");
    let end = format!("; process {} runs on here, and not at {THERE}", stamper.pid());
    assert!(last.ends_with(&end), "{case}: {messages}");
    stamper.must_run();
    wait_for("no process of a pipeline", || processes(bench).is_empty().then_some(()));
    host.must_be_clean(case);
    must_have_no_temporary_files(bench);
    host.must_not_have(stamper.pid(), &format!("{case}: {messages}"));
}

#[test]
fn a_restore_that_fails_leaves_the_process_running_here() {
    let Some(bench) = Bench::set_up("a_restore_that_fails") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    // The file that it has open is missing there: another directory hides it.
    let enter = host.enter();
    let scratch = bench.scratch().display();
    let missing =
        format!("-- '{enter} unshare --mount sh -c \"mount -t tmpfs none {scratch}; $RECEIVE\"'");
    let mut pipeline = migrate(&bench, stamper.pid(), &missing);
    let expected = ("a missing file", "at the other end: criu failed (status 1)");
    must_stay(&bench, &host, &stamper, expected, &mut pipeline);
    let messages = pipeline.messages();
    // CRIU's reason comes from there.
    assert!(messages.contains("Can't open file"), "{messages}");
    assert!(messages.contains("hint: a file that was open is missing here"), "{messages}");
    assert!(messages.contains("criu-migrate --receive: FAILED: criu failed"), "{messages}");
}

#[test]
fn nothing_is_frozen_before_every_connection_has_answered() {
    let Some(bench) = Bench::set_up("before_every_connection") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    let enter = host.enter();
    let no_answer = "which is no answer of criu-migrate";
    for (case, words, reason) in [
        ("refused", "-- 'exit 255'".to_owned(), "the connection failed (status 255)".to_owned()),
        ("silent", "--time-limit 3 -- 'cat >x'".into(), "3 s were not enough; waited for the answer of the other end".into()),
        ("closed", "-- 'true'".into(), "the connection is lost: it was closed".into()),
        ("another program", "-- 'echo welcome; cat >x'".into(), format!("the other end has said 'welcome', {no_answer}")),
        (
            "another version",
            "-- 'echo criu-migrate 7 ready 9.9; cat >x'".into(),
            "the other end has a criu-migrate of protocol 7 (version 9.9), and this is protocol 2 (version ".into(),
        ),
        ("refused there", format!("-- 'CRIU=none {enter} $RECEIVE'"), "at the other end: none: not found".into()),
        // The second of three connections does not come.
        ("one of three", format!("-n 3 -- '[ $SHARD != 1 ] && {enter} $RECEIVE'"), "connection 1 failed (status 1)".into()),
    ] {
        let mut pipeline = migrate(&bench, stamper.pid(), &words);
        must_stay(&bench, &host, &stamper, (case, &reason), &mut pipeline);
        assert!(pipeline.last_message().contains("; frozen for 0.000 s; "), "{case}");
        let sent = fs::metadata(bench.scratch().join("x")).map_or(0, |file| file.len());
        assert_eq!(sent, 0, "{case}: something was sent");
    }
}

#[test]
fn a_connection_that_fails_leaves_the_process_running_here() {
    let Some(bench) = Bench::set_up("a_connection_that_fails") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    let enter = host.enter();
    let cut = "at the other end: the connection is lost: it ended in the middle of the image";
    for (case, words, reason) in [
        ("cut in the middle", format!("-- 'head -c 30000000 | {enter} $RECEIVE'"), cut),
        (
            "killed in the middle",
            "-- 'echo criu-migrate 2 ready 1; head -c 3000000 >x; kill -9 $$'".into(),
            "the connection was killed (SIGKILL)",
        ),
        (
            "closed in the middle",
            "-- 'echo criu-migrate 2 ready 1; head -c 3000000 >x; exec <&-; sleep 5'".into(),
            "the connection is lost: Broken pipe",
        ),
        (
            "cut on the way back",
            format!("-- '{enter} $RECEIVE | head -n 1'"),
            // It was closed, or its shell was the first to end.
            "the connection",
        ),
        (
            "one of three cut in the middle",
            format!(
                "-n 3 -- 'if [ $SHARD = 1 ]; then head -c 300000; else cat; fi | {enter} $RECEIVE'"
            ),
            "at the other end: connection 1 is lost: it ended in the middle of the image",
        ),
        (
            "restored, before it was told to",
            "-- 'echo criu-migrate 2 ready 1; echo restored; cat >x'".into(),
            "the other end has said 'restored', which is no answer of criu-migrate",
        ),
    ] {
        let mut pipeline = migrate(&bench, stamper.pid(), &words);
        must_stay(&bench, &host, &stamper, (case, reason), &mut pipeline);
    }
}

#[test]
fn a_migration_that_is_interrupted_leaves_the_process_running_here() {
    let Some(bench) = Bench::set_up("is_interrupted") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    let enter = host.enter();
    for signal in SIGNALS {
        let command =
            format!("-- '{{ head -c 30000000; touch stalled; sleep 1000; }} | {enter} $RECEIVE'");
        let mut pipeline = migrate(&bench, stamper.pid(), &command);
        wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
        pipeline.signal(signal);
        assert_eq!(pipeline.status(), 128 + signal as i32);
        let last = pipeline.last_message();
        let end = format!("; process {} runs on here, and not at {THERE}", stamper.pid());
        assert!(last.starts_with("criu-migrate: FAILED: SIG") && last.ends_with(&end), "{last}");
        stamper.must_run();
        host.must_be_clean(signal.as_str());
        must_have_no_temporary_files(&bench);
        host.must_not_have(stamper.pid(), signal.as_str());
        fs::remove_file(bench.scratch().join("stalled")).expect("remove the mark");
    }
}

/// Nobody would hear of the restore, so there must be none, though the rest of the image arrives.
#[test]
fn an_other_end_that_is_killed_restores_nothing() {
    let Some(bench) = Bench::set_up("other_end_killed") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    let enter = host.enter();
    for (signal, reason) in [
        (Signal::SIGTERM, "at the other end: SIGTERM"),
        (Signal::SIGKILL, "at the other end: the process that "),
    ] {
        let command = format!(
            "-- '{{ head -c 30000000; touch stalled; sleep 0.5; cat; }} | {enter} $RECEIVE'"
        );
        for which in ["first", "last"] {
            let mut pipeline = migrate(&bench, stamper.pid(), &command);
            wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
            let mut there = host.processes();
            there.retain(|(_, name)| name == "criu-migrate");
            there.sort_unstable();
            // The one that nsenter has started, and the one that holds.
            assert_eq!(there.len(), 2, "{there:?}");
            let (pid, _) = &there[if which == "first" { 0 } else { 1 }];
            host.signal(*pid, signal);
            let case = format!("{signal} {which}");
            must_stay(&bench, &host, &stamper, (&case, reason), &mut pipeline);
            fs::remove_file(bench.scratch().join("stalled")).expect("remove the mark");
        }
    }
}

/// The one thing that cannot be excluded, and is said.
#[test]
fn an_answer_that_is_lost_leaves_the_process_here_and_says_that_it_may_run_there() {
    let Some(bench) = Bench::set_up("an_answer_that_is_lost") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 4);
    // It is ready, and it is prepared; that it is restored gets lost.
    let command = format!(
        "--json -- '{} $RECEIVE | {{ read -r it; echo $it; read -r it; echo $it; }}' >result",
        host.enter()
    );
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    let last = pipeline.last_message();
    assert!(
        last.starts_with("criu-migrate: FAILED: the connection is lost: it was closed; "),
        "{last}"
    );
    let pid = stamper.pid();
    let end = format!("; process {pid} runs on here, and perhaps runs at {THERE} too: look there");
    assert!(last.ends_with(&end), "{last}");
    let result = fs::read_to_string(bench.scratch().join("result")).expect("the result");
    assert!(
        result
            .contains(r#""process_state":"runs","host":"the other end","runs_at_host":"perhaps""#),
        "{result}"
    );
    stamper.must_run();
    assert!(host.has(pid), "not there");
}

/// Where CRIU here fails at the last moment, the process runs there, and that is known.
#[test]
fn a_criu_that_is_killed_at_the_end_leaves_both_and_says_so() {
    let Some(bench) = Bench::set_up("killed_at_the_end") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 4);
    // The answer is held back until CRIU here was killed.
    let command = format!(
        "-- '{} $RECEIVE | {{ read -r it; echo $it; read -r it; echo $it; read -r it; touch due
              until [ -e go ]; do sleep 0.05; done; echo $it; }}'",
        host.enter()
    );
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    wait_for("the answer", || bench.scratch().join("due").exists().then_some(()));
    let criu = processes(&bench).into_iter().find(|(_, name)| name == "criu").expect("criu");
    kill(Pid::from_raw(criu.0), Signal::SIGKILL).expect("kill CRIU");
    fs::write(bench.scratch().join("go"), "").expect("let it be said");
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    let last = pipeline.last_message();
    assert!(last.starts_with("criu-migrate: FAILED: criu was killed (SIGKILL); "), "{last}");
    let pid = stamper.pid();
    assert!(
        last.ends_with(&format!("; process {pid} runs on here, and runs at {THERE}")),
        "{last}"
    );
    stamper.must_run();
    assert!(host.has(pid), "not there");
}

#[test]
fn files_go_with_the_process_and_a_directory_can_be_between() {
    let Some(bench) = Bench::set_up("files_go_with_it") else {
        return;
    };
    let host = Host::start();
    let mut stamper = Stamper::start(&bench, 4);
    // The file that it has open is not there: another directory hides it.
    let scratch = bench.scratch().display();
    let command = format!(
        "--fs generation --restore-options --directory \
         -- '{} unshare --mount sh -c \"mount -t tmpfs none {scratch}; $RECEIVE\"'",
        host.enter()
    );
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    pipeline.must_succeed();
    stamper.must_be_gone();
    let pid = stamper.pid();
    let file = format!("/proc/{}/root/proc/{pid}/root{scratch}/generation", host.init);
    let generation = || fs::read_to_string(&file).expect("its file").trim().parse().unwrap_or(0);
    let seen: u64 = generation();
    assert!(seen >= stamper.generation(), "it has begun again");
    wait_for("more generations", || (generation() > seen + 1).then_some(()));
}

/// The directory of an `ssh` that reaches an sshd inside the other host, which ends with it.
fn sshd(bench: &Bench, host: &Host) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = bench.directory("ssh");
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = crate::bench::programs();
    let path = format!("{}:{path}", programs.display());
    let start = format!("{} {}", host.enter(), root.join("tests/loopback").display());
    let started = Command::new("sh")
        .args(["-c", &format!("{start} ssh {}", dir.display())])
        .env("PATH", path)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&started.stderr).trim().to_owned();
    if started.status.success() { Ok(dir.join("bin")) } else { Err(said) }
}

#[test]
fn a_process_moves_through_ssh() {
    let name = "through_ssh";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let host = Host::start();
    let ssh = match sshd(&bench, &host) {
        Ok(ssh) => ssh,
        Err(reason) => {
            skip::<()>(name, &reason);
            return;
        }
    };
    let mut stamper = Stamper::start(&bench, 64);
    let script = format!(
        "PATH={}:$PATH criu-migrate -t {} --network-lock skip -n 2 127.0.0.1",
        ssh.display(),
        stamper.pid()
    );
    let mut pipeline = Pipeline::start(&bench, "migrate", &script);
    must_move(&bench, &host, &mut stamper, &mut pipeline, "127.0.0.1");
}
