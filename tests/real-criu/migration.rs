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
use crate::safety::{SIGNALS, SOON, has_filter, must_have_no_temporary_files, processes};
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
            .args(["bash", "-c", "mount -t tmpfs none /run && while :; do sleep 1; done"])
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
            (arguments.starts_with(b"bash") && ready(first)).then_some(first)
        });
        Host { unshare, init }
    }

    /// The beginning of a command line that runs there.
    fn enter(&self) -> String {
        format!("nsenter -t {} -p -m", self.init)
    }

    /// What criu-migrate has there: processes, and a directory where connections meet.
    fn traces(&self) -> Vec<String> {
        let root = PathBuf::from(format!("/proc/{}/root", self.init));
        let numbers = fs::read_dir(root.join("proc")).expect("list the processes there").flatten();
        // Not the first one, nor what only waits to be reaped.
        let numbers = numbers.filter(|entry| entry.file_name() != "1");
        let numbers = numbers.filter(|entry| entry.path().join("exe").exists());
        let names = numbers.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
        let ours = ["bash", "cat", "criu", "image-serve", "shard-merge"];
        let names = names.filter(|name| ours.iter().any(|prefix| name.starts_with(prefix)));
        let files = fs::read_dir(root.join("run")).expect("list /run there").flatten();
        let files = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.chain(files.filter(|file| file.starts_with("criu-migrate"))).collect()
    }

    /// Fails the test unless criu-migrate soon has nothing there any more.
    fn must_be_clean(&self, case: &str) {
        let since = Instant::now();
        while !self.traces().is_empty() {
            assert!(since.elapsed() < SOON, "{case}: there are {:?} there", self.traces());
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

/// Whether the first process of a host has come as far as to have a `/run` of its own.
fn ready(init: i32) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{init}/mounts")).unwrap_or_default();
    mounts.contains("none /run tmpfs")
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

fn migrate(bench: &Bench, pid: i32, words: &str) -> Pipeline {
    let script =
        format!("export TMPDIR=$PWD; exec criu-migrate -t {pid} --network-lock skip {words}");
    Pipeline::start(bench, "migrate", &script)
}

/// Fails the test unless the process has moved, and goes on there.
fn must_move(bench: &Bench, host: &Host, stamper: &mut Stamper, pipeline: &mut Pipeline) {
    pipeline.must_succeed();
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(messages.contains("criu-migrate: restored at "), "{messages}");
    assert!(last.starts_with("criu-checkpoint: done: "), "{messages}");
    assert!(last.ends_with("is gone"), "{messages}");
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
    must_move(&bench, &host, &mut stamper, &mut pipeline);
}

#[test]
fn a_process_moves_over_three_connections() {
    let name = "three_connections";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    if !has_filter(&bench) {
        skip::<()>(name, "this shard-split has no --filter");
        return;
    }
    let host = Host::start();
    let mut stamper = Stamper::start(&bench, 64);
    let command = format!("-n 3 -- '{} $RECEIVE'", host.enter());
    let mut pipeline = migrate(&bench, stamper.pid(), &command);
    must_move(&bench, &host, &mut stamper, &mut pipeline);
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
    // Listens there, without knowing who comes. When one direction has ended, socat goes on for up
    // to 30 seconds; at the end that is half of what `must_move` waits.
    let enter = host.enter();
    let script = format!("exec socat -t30 UNIX-LISTEN:door EXEC:'{enter} criu-migrate --receive'");
    let _door = Pipeline::start(&bench, "door", &script);
    wait_for("the door", || is_listened_on("door").then_some(()));
    let mut pipeline = migrate(&bench, stamper.pid(), "-- 'socat -t30 - UNIX:door'");
    must_move(&bench, &host, &mut stamper, &mut pipeline);
}

/// Fails the test unless the migration fails soon, and the process runs on here
/// and not there.
fn must_stay(bench: &Bench, host: &Host, stamper: &Stamper, case: &str, pipeline: &mut Pipeline) {
    let since = Instant::now();
    assert_eq!(pipeline.status(), 1, "{case}: {}", pipeline.messages());
    assert!(since.elapsed() < SOON, "{case}: took {:?}", since.elapsed());
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with("criu-checkpoint: FAILED: "), "{case}: {messages}");
    assert!(last.ends_with("runs on"), "{case}: {messages}");
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
    must_stay(&bench, &host, &stamper, "a missing file", &mut pipeline);
    let messages = pipeline.messages();
    assert!(messages.contains("criu-restore: FAILED: criu failed"), "{messages}");
    assert!(messages.contains("criu-migrate: not restored at the other end"), "{messages}");
}

#[test]
fn a_connection_that_fails_leaves_the_process_running_here() {
    let Some(bench) = Bench::set_up("a_connection_that_fails") else {
        return;
    };
    let host = Host::start();
    let stamper = Stamper::start(&bench, 64);
    let enter = host.enter();
    for (case, command) in [
        ("refused", "exit 255".to_owned()),
        ("cut in the middle", format!("head -c 30000000 | {enter} $RECEIVE")),
        ("silent", "cat >x".to_owned()),
        ("another answer", "cat >x; echo welcome".to_owned()),
        ("killed", "head -c 3000000 >x; kill -9 $$".to_owned()),
        // The image arrives, but nobody hears of the restore.
        ("cut on the way back", format!("{enter} $RECEIVE | true")),
    ] {
        let mut pipeline = migrate(&bench, stamper.pid(), &format!("-- '{command}'"));
        must_stay(&bench, &host, &stamper, case, &mut pipeline);
    }
    if has_filter(&bench) {
        // The second of three connections does not come.
        let one = format!("-n 3 -- '[ $SHARD != 1 ] && {enter} $RECEIVE'");
        let mut pipeline = migrate(&bench, stamper.pid(), &one);
        must_stay(&bench, &host, &stamper, "one of three", &mut pipeline);
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
            format!("-- '{{ head -c 30000000; touch stalled; sleep 50; }} | {enter} $RECEIVE'");
        let mut pipeline = migrate(&bench, stamper.pid(), &command);
        wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
        pipeline.signal(signal);
        assert_eq!(pipeline.status(), 128 + signal as i32);
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
    let mut stamper = Stamper::start(&bench, 64);
    let dump = format!("criu-checkpoint -t {} --network-lock skip -- 'cat >image'", stamper.pid());
    Pipeline::start(&bench, "checkpoint", &dump).must_succeed();
    stamper.must_be_gone();
    let (enter, scratch) = (host.enter(), bench.scratch().display());
    for signal in ["TERM", "KILL"] {
        let script = format!(
            "export TMPDIR=$PWD
            {{ head -c 30000000 image; {enter} kill -{signal} $(cat there); sleep 0.5
               tail -c +30000001 image; }} |
                {enter} bash -c 'echo $$ >{scratch}/there; exec criu-migrate --receive'"
        );
        let mut pipeline = Pipeline::start(&bench, "receive", &script);
        assert_ne!(pipeline.status(), 0, "{signal}: {}", pipeline.messages());
        host.must_be_clean(signal);
        must_have_no_temporary_files(&bench);
        host.must_not_have(stamper.pid(), signal);
        let messages = pipeline.messages();
        assert!(messages.contains("nothing is restored"), "{signal}: {messages}");
    }
}

/// The directory of an `ssh` that reaches an sshd inside the other host, which ends with it.
fn sshd(bench: &Bench, host: &Host) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = bench.directory("ssh");
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = crate::bench::programs();
    let path = format!("{}:{}:{path}", programs.display(), root.join("contrib").display());
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
    let connections = if has_filter(&bench) { 2 } else { 1 };
    let mut stamper = Stamper::start(&bench, 64);
    let script = format!(
        "PATH={}:$PATH criu-migrate -t {} --network-lock skip -n {connections} 127.0.0.1",
        ssh.display(),
        stamper.pid()
    );
    let mut pipeline = Pipeline::start(&bench, "migrate", &script);
    must_move(&bench, &host, &mut stamper, &mut pipeline);
}
