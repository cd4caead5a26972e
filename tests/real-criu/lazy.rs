//! `image-serve --lazy`: the processes run before their memory is there, and
//! never read a wrong byte, whatever they do to it and whoever dies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, pid_of, skip, wait_for};
use crate::criu::{Image, Run};
use crate::pipeline::Pipeline;
use crate::streams::dump_into;
use crate::victim::Victim;

const DUMP: &str = "criu-sock-capture -D dump -p 3 3>dump.progress > image";

const LAZY: &str = "image-serve --lazy -v -D restore -p 3 3>restore.progress < image";

/// Changes its memory in every way, and checks it: what it says in its status
/// file is how many operations it has done, or what it found wrong.
const STORM: &str = include_str!("storm.py");

/// `storm.py`, in processes that are killed when the test ends.
struct Storm {
    root: Child,
    status: PathBuf,
}

impl Storm {
    /// So many processes with so much memory each. `None` where there is no
    /// Python that can do it.
    fn start(bench: &Bench, name: &str, processes: usize, megabytes: usize) -> Option<Storm> {
        Storm::start_by(bench, name, &["python3"], processes, megabytes)
    }

    /// Started by these words.
    fn start_by(
        bench: &Bench,
        name: &str,
        words: &[&str],
        processes: usize,
        megabytes: usize,
    ) -> Option<Storm> {
        let status = bench.scratch().join("storm.status");
        let mut python = Command::new(words[0]);
        python.args(&words[1..]).args(["-c", STORM]).arg(&status);
        python.args([processes.to_string(), megabytes.to_string()]);
        python.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(root) = python.spawn() else {
            skip::<()>(name, "no python3 here to change memory");
            return None;
        };
        let storm = Storm { root, status };
        wait_for("operations", || (storm.operations() > 20).then_some(()));
        Some(storm)
    }

    fn pid(&self) -> i32 {
        pid_of(&self.root).as_raw()
    }

    /// How many operations were done. Fails the test if one has found wrong
    /// memory.
    fn operations(&self) -> u64 {
        let mut sum = 0;
        for index in 0..8 {
            let path = self.status.with_extension(index.to_string());
            let text = fs::read_to_string(path).unwrap_or_default();
            assert!(!text.contains("wrong"), "process {index} found {text}");
            sum += text.trim().parse::<u64>().unwrap_or(0);
        }
        sum
    }

    fn dump(&mut self, bench: &Bench) {
        self.dump_process(bench, self.pid());
    }

    fn dump_process(&mut self, bench: &Bench, pid: i32) {
        let images = bench.directory("dump");
        let mut pipeline = Pipeline::start(bench, "dump", DUMP);
        pipeline.wait_for_progress("dump.progress", "socket-init");
        bench.criu.dump(Image::Stream, &images, pid, &[]).must_succeed();
        pipeline.must_succeed();
        self.must_be_gone();
    }

    /// kill -9, and wait for the end of all.
    fn kill(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.must_be_gone();
    }

    /// Waits until no process of the tree is left, and all its numbers are free.
    fn must_be_gone(&mut self) {
        wait_for("the end of the tree", || {
            let _ = self.root.try_wait();
            let reaped = reap();
            let is_root_there = Path::new(&format!("/proc/{}", self.pid())).exists();
            (self.processes().is_empty() && !reaped && !is_root_there).then_some(())
        });
    }

    /// All processes of the tree: they have the status file among their
    /// arguments.
    fn processes(&self) -> Vec<i32> {
        let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let file = self.status.as_os_str().as_encoded_bytes();
        let has_it = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == file)
        };
        numbers.filter(has_it).collect()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for _ in 0..100 {
            let _ = self.root.try_wait();
            reap();
            let left = self.processes();
            if left.is_empty() && !Path::new(&format!("/proc/{}", self.pid())).exists() {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Waits for processes of the tree that have ended: they are children of this
/// process by now. Were there any, or are there any that have not quite ended?
fn reap() -> bool {
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_of_a_tree = stat.contains("(python3)") || stat.contains("(true)");
        let has_ended = [") Z ", ") X "].iter().any(|state| stat.contains(state));
        if is_of_a_tree && has_ended {
            let flags = Some(WaitPidFlag::WNOHANG);
            found |= waitpid(Pid::from_raw(pid), flags).is_ok();
        }
    }
    found
}

fn restore_lazily(bench: &Bench) -> Run {
    let images = bench.scratch().join("restore");
    bench.criu.restore(Image::Stream, &images, &["--lazy-pages"])
}

/// Starts the server by this script, and CRIU, and waits until the tree runs.
fn begin(bench: &Bench, script: &str) -> Pipeline {
    fs::create_dir_all(bench.scratch().join("restore")).expect("create a directory");
    let _ = fs::remove_file(bench.scratch().join("restore.progress"));
    let mut pipeline = Pipeline::start(bench, "restore", script);
    pipeline.wait_for_progress("restore.progress", "socket-init");
    restore_lazily(bench).must_succeed();
    pipeline
}

#[test]
fn a_tree_goes_on_while_its_memory_comes() {
    let Some(bench) = Bench::set_up("a_tree_goes_on_while_its_memory_comes") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--processes", "12"]);
    let dumped = dump_into(&bench, &mut victim, DUMP);
    let mut pipeline = begin(&bench, LAZY);
    pipeline.must_succeed();
    let progress = fs::read_to_string(bench.scratch().join("restore.progress")).expect("progress");
    let lines: Vec<_> = progress.lines().collect();
    let at = |line: &str| lines.iter().position(|it| *it == line);
    assert!(at("socket-init") < at("restored") && at("restored").is_some(), "{progress}");
    let last: serde_json::Value = serde_json::from_str(lines[lines.len() - 1]).expect("JSON");
    assert!(last["filled"].as_u64() > Some(100 << 20), "{progress}");
    assert_eq!(last["left"], 0, "{progress}");
    victim.must_go_on(&dumped);
}

#[test]
fn one_line_restores_a_tree_lazily() {
    let Some(bench) = Bench::set_up("one_line_restores_a_tree_lazily") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "60"]);
    let dumped = dump_into(&bench, &mut victim, DUMP);
    bench.directory("restore");
    let criu = bench.criu.program().display().to_string();
    let script = format!(
        "image-serve --lazy --verify-first --threads 1 -D restore -- \
         {criu} restore --stream --lazy-pages -D restore --restore-detached \
         --tcp-established --network-lock skip < image"
    );
    Pipeline::start(&bench, "restore", &script).must_succeed();
    victim.must_go_on(&dumped);
}

#[test]
fn criu_restore_ends_when_all_memory_is_there() {
    let name = "criu_restore_ends_when_all_memory_is_there";
    let Some(bench) = Bench::set_up("criu_restore_lazy") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "60"]);
    let dumped = dump_into(&bench, &mut victim, DUMP);
    let criu = bench.criu.program().display().to_string();
    let script = format!(
        "CRIU={criu} criu-restore --lazy image --tcp-established --network-lock skip --json >told"
    );
    let mut pipeline = Pipeline::start(&bench, "restore", &script);
    pipeline.must_succeed();
    assert!(pipeline.last_message().contains("; filled: "), "{}", pipeline.messages());
    let told = fs::read_to_string(bench.scratch().join("told")).expect("a line of JSON");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["result"], &told["left"]), (&"restored".into(), &0.into()), "{told}");
    println!("{name}: {told}");
    victim.must_go_on(&dumped);
}

#[test]
fn criu_restore_fails_and_the_tree_is_gone_if_memory_cannot_come() {
    let name = "criu_restore_fails_and_the_tree_is_gone_if_memory_cannot_come";
    let Some(bench) = Bench::set_up("criu_restore_cut") else {
        return;
    };
    let Some(mut storm) = Storm::start(&bench, name, 1, 300) else {
        return;
    };
    storm.dump(&bench);
    // CRIU says when the processes run: then the image is cut.
    let hook = bench.scratch().join("hook");
    let text = "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-resume ] || : > image\n";
    fs::write(&hook, text.replace("image", &bench.scratch().join("image").display().to_string()))
        .expect("write a script");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let criu = bench.criu.program().display().to_string();
    let script =
        format!("CRIU={criu} criu-restore --lazy image --network-lock skip --action-script ./hook");
    let mut pipeline = Pipeline::start(&bench, "restore", &script);
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    let messages = pipeline.messages();
    assert!(messages.contains("the image was changed while it was in use"), "{messages}");
    assert!(pipeline.last_message().contains("FAILED: image-serve failed"), "{messages}");
    storm.must_be_gone();
    storm.operations();
}

#[test]
fn processes_change_their_memory_in_every_way_while_it_comes() {
    let name = "processes_change_their_memory_in_every_way_while_it_comes";
    for processes in [1, 4] {
        let Some(bench) = Bench::set_up(&format!("storm_{processes}")) else {
            return;
        };
        let Some(mut storm) = Storm::start(&bench, name, processes, 120 / processes) else {
            return;
        };
        storm.dump(&bench);
        let before = storm.operations();
        let mut pipeline = begin(&bench, LAZY);
        pipeline.must_succeed();
        let meanwhile = storm.operations() - before;
        println!("{name}: {processes} processes: {meanwhile} operations while memory came");
        wait_for("more operations", || (storm.operations() > before + 300).then_some(()));
    }
}

/// Who dies in the middle of it.
#[derive(Clone, Copy, Debug)]
enum Death {
    Server,
    Keeper,
    Terminated,
    Cut,
    Rewritten,
}

#[test]
fn a_tree_whose_memory_cannot_come_is_gone_and_was_never_wrong() {
    let name = "a_tree_whose_memory_cannot_come_is_gone_and_was_never_wrong";
    let Some(bench) = Bench::set_up("lazy_deaths") else {
        return;
    };
    let Some(mut storm) = Storm::start(&bench, name, 2, 80) else {
        return;
    };
    storm.dump(&bench);
    let deaths = [Death::Server, Death::Keeper, Death::Terminated, Death::Cut, Death::Rewritten];
    for (turn, death) in deaths.into_iter().enumerate() {
        dies(&bench, &mut storm, death, turn as u64);
    }
}

fn dies(bench: &Bench, storm: &mut Storm, death: Death, seed: u64) {
    let whole = bench.scratch().join("image");
    let image = bench.scratch().join("copy");
    fs::copy(&whole, &image).expect("copy the image");
    let script = "exec image-serve --lazy -D restore -p 3 3>restore.progress < copy";
    let mut pipeline = begin(bench, script);
    let server = pipeline.pid();
    sleep(Duration::from_millis(Random::new(seed).below(60) as u64));
    match death {
        Death::Server => drop(kill(server, Signal::SIGKILL)),
        Death::Terminated => drop(kill(server, Signal::SIGTERM)),
        Death::Keeper => {
            if let Some(keeper) = keeper_of(server) {
                let _ = kill(keeper, Signal::SIGKILL);
            }
        }
        Death::Cut => {
            let file = fs::File::options().write(true).open(&image).expect("open the image");
            file.set_len(image.metadata().expect("its size").len() / 2).expect("cut it");
        }
        Death::Rewritten => fs::write(&image, "no image").expect("rewrite the image"),
    }
    let status = pipeline.status();
    println!("{death:?}: status {status}: {}", pipeline.messages().trim().replace('\n', "; "));
    match (death, status) {
        // All memory had come before.
        (_, 0) => wait_for("operations", || (storm.operations() > 0).then_some(())),
        (Death::Server, 137) | (Death::Terminated, 143) | (_, 1) => {
            storm.must_be_gone();
            let messages = pipeline.messages();
            assert!(messages.contains("kills "), "{death:?}: silently: {messages}");
        }
        _ => panic!("{death:?}: status {status}: {}", pipeline.messages()),
    }
    // Wrong memory would have been noted.
    storm.operations();
    storm.kill();
}

#[test]
fn a_tree_in_its_own_pid_namespace_is_filled_or_gone() {
    let name = "a_tree_in_its_own_pid_namespace_is_filled_or_gone";
    let Some(bench) = Bench::set_up("lazy_namespace") else {
        return;
    };
    let unshare = ["unshare", "--pid", "--fork", "setsid", "python3"];
    let Some(mut storm) = Storm::start_by(&bench, name, &unshare, 2, 80) else {
        return;
    };
    let root = fs::read_to_string(format!("/proc/{0}/task/{0}/children", storm.pid()));
    let root = root.expect("children of unshare").trim().parse().expect("one child");
    storm.dump_process(&bench, root);
    let before = storm.operations();
    begin(&bench, LAZY).must_succeed();
    wait_for("operations", || (storm.operations() > before + 100).then_some(()));
    storm.kill();
    for (seed, death) in [Death::Server, Death::Cut, Death::Keeper].into_iter().enumerate() {
        dies(&bench, &mut storm, death, seed as u64);
    }
}

fn keeper_of(server: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).ok()?;
    let mut numbers = children.split_whitespace().filter_map(|number| number.parse::<i32>().ok());
    let is_keeper = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "lazy-keeper\n")
    };
    numbers.find(is_keeper).map(Pid::from_raw)
}

#[test]
fn a_restore_without_lazy_pages_is_refused() {
    let Some(bench) = Bench::set_up("without_lazy_pages") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
    dump_into(&bench, &mut victim, DUMP);
    let images = bench.directory("restore");
    let mut pipeline = Pipeline::start(&bench, "restore", LAZY);
    pipeline.wait_for_progress("restore.progress", "socket-init");
    assert!(!bench.criu.restore(Image::Stream, &images, &[]).succeeds(), "criu restores zeros");
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    assert!(pipeline.messages().contains("needs --lazy-pages"), "{}", pipeline.messages());
}

#[test]
fn who_may_not_have_memory_on_demand_is_told_before_criu_is_started() {
    let name = "who_may_not_have_memory_on_demand_is_told_before_criu_is_started";
    let Some(bench) = Bench::set_up("no_userfaultfd") else {
        return;
    };
    let image = bench.scratch().join("image");
    fs::write(&image, "").expect("write an image");
    let told = Command::new(crate::bench::program("image-serve"))
        .args(["--lazy", "-D", "/tmp", "--", "true"])
        .stdin(fs::File::open(&image).expect("open it"))
        .uid(65534)
        .output();
    let Ok(told) = told else {
        skip::<()>(name, "nobody may start the programs here");
        return;
    };
    let message = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{message}");
    assert!(message.contains("userfaultfd: not allowed here"), "{message}");
    assert!(message.contains("CAP_SYS_PTRACE"), "{message}");
}
