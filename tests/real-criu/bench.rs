//! What a test works with: a CRIU, a directory, and the machine to itself.

use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::unistd::{Pid, Uid};

use crate::criu::{Criu, Image};

static MACHINE: Mutex<()> = Mutex::new(());

/// How long anything may take before the test fails. A dump takes a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Held by the one test that runs now. Everything the test makes goes into
/// [`Bench::scratch`], which is removed at the end.
pub(crate) struct Bench {
    pub(crate) criu: Criu,
    tcp: bool,
    scratch: PathBuf,
    _machine: MutexGuard<'static, ()>,
}

impl Bench {
    /// For the test `name`, or `None` (and a line that says why) if this
    /// machine can't run it.
    pub(crate) fn set_up(name: &str) -> Option<Bench> {
        // A test that failed has cleaned up after itself as well.
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        if !Uid::effective().is_root() {
            return skip(name, "only root can restore processes");
        }
        let program = env::var_os("CRIU").map_or_else(|| "criu".into(), PathBuf::from);
        let check = Command::new(&program).arg("check").stdin(Stdio::null()).output();
        if !check.is_ok_and(|check| check.status.success()) {
            let program = program.display();
            return skip(name, &format!("`{program} check` fails; try CRIU=$(contrib/get-criu)"));
        }
        // What CRIU restores becomes a child of this process, which can then
        // reap it: a process that nobody reaps keeps its pid from being used.
        prctl::set_child_subreaper(true).expect("become a subreaper");
        let scratch = env::temp_dir().join(format!("real-criu.{}.{name}", std::process::id()));
        fs::create_dir(&scratch).expect("create the scratch directory");
        let mut bench = Bench { criu: Criu::new(program), tcp: true, scratch, _machine: machine };
        if bench.criu_refuses_tcp() {
            bench.tcp = false;
            let reason =
                "this CRIU can't dump TCP sockets of this kernel; try CRIU=$(contrib/get-criu)";
            skip::<()>(&format!("the TCP socket in {name}"), reason);
        }
        Some(bench)
    }

    /// Can this CRIU dump TCP sockets of this kernel?
    pub(crate) fn tcp(&self) -> bool {
        self.tcp
    }

    /// Dumps a process with a TCP socket. CRIU 4.1.1 asks every socket for
    /// `SO_PASSCRED` (1:16), which Linux 6.16 and later refuse on those.
    fn criu_refuses_tcp(&self) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on TCP");
        let mut holder = Command::new("sleep")
            .arg("60")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start sleep");
        let images = self.directory("tcp");
        let pid = pid_of(&holder).as_raw();
        // A shell job may be part of a session that isn't dumped.
        let mut dump = (self.criu).dump(Image::Files, &images, pid, &["--shell-job"]);
        let refused = !dump.succeeds() && dump.last_words().contains("Can't get 1:16 opt");
        holder.kill().expect("kill sleep");
        holder.wait().expect("reap sleep");
        refused
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A new directory for the test's files.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.scratch.join(name);
        fs::create_dir(&path).expect("create a directory");
        path
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() && env::var_os("KEEP").is_some() {
            eprintln!("kept: {}", self.scratch.display());
        } else {
            let _ = fs::remove_dir_all(&self.scratch);
        }
    }
}

/// Says that the test `name` did not run, and why.
pub(crate) fn skip<T>(name: &str, reason: &str) -> Option<T> {
    println!("skipped: {name}: {reason}");
    None
}

/// Asks `probe` until it has an answer; `what` is for the message when that
/// takes too long.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        sleep(Duration::from_millis(20));
    }
}

/// A built program of the workspace.
pub(crate) fn program(name: &str) -> PathBuf {
    programs().join(name)
}

/// Where the workspace's programs are: two levels above this test, which is
/// `target/debug/deps/real-criu-…`.
pub(crate) fn programs() -> PathBuf {
    let test = env::current_exe().expect("find this test's own file");
    test.ancestors().nth(2).expect("find the target directory").to_path_buf()
}

/// The child's process id, in nix's terms.
pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id"))
}
