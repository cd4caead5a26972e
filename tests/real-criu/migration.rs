//! `criu-migrate`: the process is killed here only when it runs there.
//!
//! The other host is another PID namespace on the same machine.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::bench::{Bench, pid_of, skip, wait_for};
use crate::pipeline::Pipeline;
use crate::safety::{has_filter, processes};
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

    /// Whether a process with this number is there.
    fn has(&self, pid: i32) -> bool {
        Path::new(&format!("/proc/{}/root/proc/{pid}/exe", self.init)).exists()
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

fn migrate(bench: &Bench, pid: i32, words: &str) -> Pipeline {
    let script = format!("TMPDIR=$PWD criu-migrate -t {pid} --network-lock skip {words}");
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
    // Listens there, without knowing who comes.
    let enter = host.enter();
    let script = format!("exec socat -t60 UNIX-LISTEN:door EXEC:'{enter} criu-migrate --receive'");
    let _door = Pipeline::start(&bench, "door", &script);
    wait_for("the door", || bench.scratch().join("door").exists().then_some(()));
    let mut pipeline = migrate(&bench, stamper.pid(), "-- 'socat -t60 - UNIX:door'");
    must_move(&bench, &host, &mut stamper, &mut pipeline);
}

/// Fails the test unless the migration fails soon, and the process runs on here
/// and not there.
fn must_stay(bench: &Bench, host: &Host, stamper: &Stamper, case: &str, pipeline: &mut Pipeline) {
    let since = Instant::now();
    assert_eq!(pipeline.status(), 1, "{case}: {}", pipeline.messages());
    assert!(since.elapsed() < Duration::from_secs(5), "{case}: took {:?}", since.elapsed());
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with("criu-checkpoint: FAILED: "), "{case}: {messages}");
    assert!(last.ends_with("runs on"), "{case}: {messages}");
    stamper.must_run();
    assert!(!host.has(stamper.pid()), "{case}: it is there too");
    wait_for("no process of a pipeline", || processes(bench).is_empty().then_some(()));
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

/// An sshd on loopback, inside the other host, for as long as the test lasts.
struct Sshd {
    /// In front of `ssh`'s other options, in a directory that is first in PATH.
    bin: PathBuf,
}

impl Sshd {
    /// `None` if there is no sshd that starts.
    fn start(bench: &Bench, host: &Host) -> Option<Sshd> {
        let found = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"];
        let named = std::env::var_os("SSHD").map(PathBuf::from);
        let sshd = named.or_else(|| found.iter().map(PathBuf::from).find(|path| path.exists()))?;
        let bin = bench.directory("bin");
        let dir = bench.directory("sshd");
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            keygen.status().ok().filter(|status| status.success())?;
        }
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let path = std::env::var("PATH").unwrap_or_default();
        let criu = std::env::var("CRIU").unwrap_or_else(|_| "criu".into());
        let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib");
        let programs = crate::bench::programs();
        let dir = dir.display();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {dir}/host\nPidFile none\n\
             AuthorizedKeysFile {dir}/user.pub\nStrictModes no\nPermitRootLogin yes\n\
             UsePAM no\nSetEnv CRIU={criu} PATH={}:{}:{path}\n",
            programs.display(),
            contrib.display()
        );
        fs::write(format!("{dir}/config"), config).ok()?;
        let _ = fs::create_dir_all("/run/sshd");
        let start = format!("{} {} -f {dir}/config", host.enter(), sshd.display());
        let mut started = Pipeline::start(bench, "sshd", &format!("cd / && {start}"));
        if started.status() != 0 {
            println!("sshd: {}", started.messages());
            return None;
        }
        let ssh = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F none -p {port} -i {dir}/user \
             -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \"$@\"\n"
        );
        fs::write(bin.join("ssh"), ssh).ok()?;
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).ok()?;
        Some(Sshd { bin })
    }
}

#[test]
fn a_process_moves_through_ssh() {
    let name = "through_ssh";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let host = Host::start();
    let Some(sshd) = Sshd::start(&bench, &host) else {
        skip::<()>(name, "there is no sshd that starts (another one: SSHD=PATH)");
        return;
    };
    let connections = if has_filter(&bench) { 2 } else { 1 };
    let mut stamper = Stamper::start(&bench, 64);
    let script = format!(
        "PATH={}:$PATH criu-migrate -t {} --network-lock skip -n {connections} 127.0.0.1",
        sshd.bin.display(),
        stamper.pid()
    );
    let mut pipeline = Pipeline::start(&bench, "migrate", &script);
    must_move(&bench, &host, &mut stamper, &mut pipeline);
}
