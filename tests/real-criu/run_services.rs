//! `criu-run` under a service manager, and with the capabilities of a pod.
//!
//! The service manager is this test, which does what one does: a control group, a socket for the
//! output, a signal to one process or to all, SIGKILL for what is left, and a restart.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, pid_of, skip, wait_for};
use crate::runs::{COUNT, Run, children, counts_on, lines, messages, shell, wait_until};

/// A control group, and what was started in it.
struct Service<'a> {
    bench: &'a Bench,
    group: PathBuf,
}

impl Service<'_> {
    /// `None` (and a line that says why) where there can be no control group.
    fn new<'a>(bench: &'a Bench, name: &str) -> Option<Service<'a>> {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(mount) = mounts.find(|fields| fields.get(2) == Some(&"cgroup2")) else {
            return skip(name, "there is no cgroup2");
        };
        let group =
            Path::new(mount[1]).join(format!("criu-run-test-{}-{name}", std::process::id()));
        match fs::create_dir(&group) {
            Ok(()) => Some(Service { bench, group }),
            Err(error) => skip(name, &format!("no control group can be made: {error}")),
        }
    }

    /// Starts `criu-run` in it, with a socket for output and messages, as a journal has.
    fn start(&self, script: &str) -> Run {
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        let path = self.bench.scratch().join("out");
        let mut out = File::options().append(true).create(true).open(path).expect("open the file");
        thread::spawn(move || std::io::copy(&mut &ours, &mut out));
        let errors = self.bench.scratch().join("err");
        let errors = File::options().append(true).create(true).open(errors).expect("open the file");
        let procs = self.group.join("cgroup.procs");
        let script = format!("echo $$ >{} && exec criu-run {script}", procs.display());
        let mut command = shell(self.bench, &script);
        command.env("COUNT", COUNT).stdout(OwnedFd::from(theirs)).stderr(errors);
        Run { child: command.spawn().expect("start criu-run") }
    }

    fn processes(&self) -> Vec<Pid> {
        let list = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        list.lines().map(|line| Pid::from_raw(line.parse().expect("a number"))).collect()
    }

    /// Stops it: a signal to criu-run, or to all; when criu-run has ended, SIGKILL to the rest.
    fn stop(&self, run: &mut Run, all: bool) -> ExitStatus {
        match all {
            true => self.processes().into_iter().for_each(|pid| _ = kill(pid, Signal::SIGTERM)),
            false => run.signal(Signal::SIGTERM),
        }
        let status = run.ends();
        wait_for("the end of the control group", || {
            let left = self.processes();
            left.iter().for_each(|pid| _ = kill(*pid, Signal::SIGKILL));
            left.is_empty().then_some(())
        });
        status
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        wait_for("an empty control group", || fs::remove_dir(&self.group).ok());
    }
}

fn restarts(name: &str, all: bool, program: &str) {
    let Some(bench) = Bench::set_up(name) else { return };
    let Some(service) = Service::new(&bench, name) else { return };
    let script = format!("--image job.img --network-lock skip -- sh -c '{program}' 250");
    for round in 1..=3 {
        let mut run = service.start(&script);
        counts_on(&bench);
        let status = service.stop(&mut run, all);
        assert_eq!(status.code(), Some(75), "round {round}: {}", messages(&bench));
    }
    let mut run = service.start(&script);
    assert_eq!(run.ends().code(), Some(7), "{}", messages(&bench));
    wait_until(&bench, 250);
    let expected: Vec<u32> = (1..=250).collect();
    assert_eq!(lines(&bench), expected, "a line is lost or doubled");
}

#[test]
fn a_service_goes_on_after_a_restart() {
    restarts("service_mixed", false, COUNT);
}

#[test]
fn a_service_that_is_deaf_to_the_signal_goes_on_where_all_get_it() {
    restarts("service_control_group", true, &format!(r#"trap "" TERM; {COUNT}"#));
}

#[test]
fn a_service_that_ends_by_a_signal_to_all_ends_in_its_own_way() {
    let name = "service_own_way";
    let Some(bench) = Bench::set_up(name) else { return };
    let Some(service) = Service::new(&bench, name) else { return };
    // A child of the shell's would get the signal as well.
    let program = r#"trap "echo 1000; exit 3" TERM; echo 1; while :; do read -t 1 x <>fifo; done"#;
    Command::new("mkfifo").arg(bench.scratch().join("fifo")).status().expect("make a FIFO");
    let mut run = service.start(&format!("--image job.img -- bash -c '{program}'"));
    wait_until(&bench, 1);
    let status = service.stop(&mut run, true);
    // A checkpoint had begun, or not yet.
    let ended_so = [Some(3), Some(75)].contains(&status.code());
    assert!(ended_so && status.signal().is_none(), "{status}: {}", messages(&bench));
    if status.code() == Some(3) {
        wait_until(&bench, 1000);
        assert_eq!(lines(&bench), [1, 1000]);
    }
}

/// What CRIU needs for a program of root's: contrib/kubernetes/pod.yaml has the same.
const CAPABILITIES: [&str; 5] = ["NET_ADMIN", "SETPCAP", "SYS_ADMIN", "SYS_CHROOT", "SYS_TIME"];

/// Whether a program is evicted and goes on as process 1 of a container's namespaces with these.
fn goes_on_with(bench: &Bench, capabilities: &[&str]) -> bool {
    let list: Vec<String> =
        capabilities.iter().map(|it| format!(",+{}", it.to_ascii_lowercase())).collect();
    for file in ["out", "err", "job.img"] {
        let _ = fs::remove_file(bench.scratch().join(file));
    }
    let _ = fs::remove_dir_all(bench.scratch().join("tmp"));
    bench.directory("tmp");
    let start = || {
        // A container's descriptors are its own.
        let script = format!(
            "exec unshare --pid --mount-proc --fork --kill-child sh -c 'exec setpriv \
             --bounding-set=-all{} --inh-caps=-all criu-run --image job.img --network-lock skip \
             -- sh -c \"$COUNT\" 50 </dev/null >>out 2>>err'",
            list.concat()
        );
        let mut command = shell(bench, &script);
        command.env("COUNT", COUNT).env("TMPDIR", bench.scratch().join("tmp"));
        Run { child: command.spawn().expect("start unshare") }
    };
    let mut run = start();
    wait_until(bench, 5);
    let inner = wait_for("criu-run", || children(pid_of(&run.child)).first().copied());
    kill(inner, Signal::SIGTERM).expect("send a signal");
    if run.ends().code() != Some(75) {
        return false;
    }
    let mut run = start();
    // With a failure in the restored processes, CRIU waits for ever.
    let status = wait_for("the end of the restore", || {
        let status = run.child.try_wait().expect("wait for unshare");
        let failed = restore_log(&bench.scratch().join("tmp"))
            .contains("Killing processes because of failure on restore");
        match (status, failed) {
            (Some(status), _) => Some(status.code()),
            (None, true) => Some(None),
            (None, false) => None,
        }
    });
    status == Some(7) && lines(bench) == (1..=50).collect::<Vec<u32>>()
}

fn restore_log(scratch: &Path) -> String {
    let directories = fs::read_dir(scratch).expect("list a directory").flatten();
    let mut text = String::new();
    for directory in directories {
        if let Ok(mut file) = File::open(directory.path().join("restore.log")) {
            let mut bytes = Vec::new();
            let _ = file.read_to_end(&mut bytes);
            text += &String::from_utf8_lossy(&bytes);
        }
    }
    text
}

#[test]
fn the_pod_has_the_capabilities_that_are_needed_and_no_more() {
    let name = "the_pod_has_the_capabilities_that_are_needed_and_no_more";
    let Some(bench) = Bench::set_up("capabilities") else { return };
    let pod = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/kubernetes/pod.yaml");
    let pod = fs::read_to_string(pod).expect("the manifest");
    let line = pod.lines().find_map(|line| line.trim().strip_prefix("add: ["));
    let listed = line.and_then(|line| line.strip_suffix(']')).expect("a list");
    assert_eq!(listed.split(", ").collect::<Vec<_>>(), CAPABILITIES);

    let has_setpriv =
        Command::new("setpriv").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_setpriv {
        skip::<()>(name, "there is no setpriv (package util-linux)");
        return;
    }
    assert!(goes_on_with(&bench, &CAPABILITIES), "{}", messages(&bench));
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|it| *it != missing).collect();
        assert!(!goes_on_with(&bench, &rest), "{missing} is not needed");
    }
}
