//! `criu-run` with programs of several kinds, with stores that fail, and killed itself.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, pid_of, program, skip, wait_for};
use crate::runs::{COUNT, Run, children, counts_on, lines, messages, shell, wait_until};

/// Evicts it so many times, and waits for its end.
fn evict(bench: &Bench, script: &str, times: u32, last: u32, code: i32) {
    for round in 1..=times {
        let mut run = Run::start(bench, script);
        counts_on(bench);
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().code(), Some(75), "round {round}: {}", messages(bench));
    }
    let status = Run::start(bench, script).ends();
    assert_eq!(status.code(), Some(code), "{}", messages(bench));
    must_be_complete(bench, last);
}

/// All numbers have come, each once.
fn must_be_complete(bench: &Bench, last: u32) {
    let expected: Vec<u32> = (1..=last).collect();
    assert_eq!(lines(bench), expected, "a line is lost or doubled: {}", messages(bench));
}

#[test]
fn an_evicted_python_goes_on() {
    let Some(bench) = Bench::set_up("evicted_python") else { return };
    if !Path::new("/usr/bin/python3").exists() {
        skip::<()>("an_evicted_python_goes_on", "there is no /usr/bin/python3");
        return;
    }
    let script = r#"
import sys, time
table = {}
for n in range(1, 251):
    table[n] = str(n) * 1000
    assert all(table[m] == str(m) * 1000 for m in table)
    print(n, flush=True)
    time.sleep(0.02)
sys.exit(9)
"#;
    fs::write(bench.scratch().join("job.py"), script).expect("write the program");
    let script = "--image job.img --network-lock skip -- /usr/bin/python3 job.py";
    evict(&bench, script, 3, 250, 9);
}

#[test]
fn an_evicted_program_with_threads_goes_on() {
    let Some(bench) = Bench::set_up("evicted_threads") else { return };
    // Four threads take turns: each waits for the number before its own.
    let program = program("victim");
    let script =
        format!("--image job.img --network-lock skip -- {} turns 4 1000", program.display());
    evict(&bench, &script, 3, 1000, 0);
}

#[test]
fn an_evicted_pipeline_goes_on() {
    let Some(bench) = Bench::set_up("evicted_pipeline") else { return };
    let script = "--image job.img --network-lock skip -- \
                  sh -c 'sh -c \"$PRODUCE\" 250 | while read -r n; do echo $n; done; exit 4'";
    for round in 1..=4 {
        let child = shell(&bench, &format!("exec criu-run {script} >>out 2>>err"))
            .env("PRODUCE", COUNT)
            .spawn();
        let mut run = Run { child: child.expect("start criu-run") };
        if round < 4 {
            counts_on(&bench);
            run.signal(Signal::SIGTERM);
        }
        let code = if round < 4 { 75 } else { 4 };
        assert_eq!(run.ends().code(), Some(code), "round {round}: {}", messages(&bench));
    }
    must_be_complete(&bench, 250);
}

/// Asks a redis, and returns the first line of its answer, or what that line announces.
fn redis(socket: &Path, words: &[&str]) -> Option<String> {
    let mut connection = UnixStream::connect(socket).ok()?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    connection.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") || (answer[0] == b'$' && count_of_lines(&answer) < 2) {
        let mut byte = [0];
        connection.read_exact(&mut byte).ok()?;
        answer.extend(byte);
    }
    let text = String::from_utf8(answer).ok()?;
    text.trim_end().rsplit("\r\n").next().map(String::from)
}

fn count_of_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn an_evicted_redis_has_its_data() {
    let Some(bench) = Bench::set_up("evicted_redis") else { return };
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        let reason = "there is no redis-server (package redis-server)";
        skip::<()>("an_evicted_redis_has_its_data", reason);
        return;
    }
    let socket = bench.scratch().join("redis.sock");
    let script = format!(
        "--image job.img.zst --network-lock skip -- redis-server --port 0 --unixsocket {} \
         --save '' --appendonly no --daemonize no",
        socket.display()
    );
    for round in 1..=4_u32 {
        let mut run = Run::start(&bench, &script);
        let counted = wait_for("its answer", || redis(&socket, &["INCR", "rounds"]));
        assert_eq!(counted, format!(":{round}"), "{}", messages(&bench));
        if round == 1 {
            for n in 0..500 {
                let value = format!("{n}").repeat(1000);
                let set = redis(&socket, &["SET", &format!("key:{n}"), &value]);
                assert_eq!(set.as_deref(), Some("+OK"));
            }
        }
        for n in (0..500).step_by(7) {
            let value = redis(&socket, &["GET", &format!("key:{n}")]);
            assert_eq!(value, Some(format!("{n}").repeat(1000)), "round {round}");
        }
        // CRIU does not carry one end of a connection.
        wait_for("the end of the connections", || {
            let sockets = fs::read_to_string("/proc/net/unix").ok()?;
            let path = socket.to_string_lossy();
            let connected =
                |line: &&str| line.contains(&*path) && line.split_whitespace().nth(5) == Some("03");
            sockets.lines().find(connected).is_none().then_some(())
        });
        if round == 4 {
            run.signal(Signal::SIGINT);
            assert_eq!(run.ends().code(), Some(0), "{}", messages(&bench));
            return;
        }
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().code(), Some(75), "round {round}: {}", messages(&bench));
    }
}

/// A PID namespace with its own `/proc`, for as long as this is there.
struct Namespace {
    child: std::process::Child,
    init: Pid,
}

impl Namespace {
    fn new() -> Namespace {
        let child = Command::new("unshare")
            .args(["--pid", "--mount-proc", "--fork", "--kill-child", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("start unshare");
        let init = wait_for("the namespace", || {
            let child = children(pid_of(&child)).first().copied()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "sleep").then_some(child)
        });
        Namespace { child, init }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_program_moves_twenty_times_between_two_namespaces() {
    let Some(bench) = Bench::set_up("two_namespaces") else { return };
    let hosts = [Namespace::new(), Namespace::new()];
    let start = |round: usize| {
        let init = hosts[round % 2].init;
        let script = format!(
            "exec nsenter -t {init} -p -m sh -c 'cd {} && exec criu-run --image job.img \
             --network-lock skip -- sh -c \"$COUNT\" 100000 </dev/null >>out 2>>err'",
            bench.scratch().display()
        );
        let child = shell(&bench, &script).env("COUNT", COUNT).spawn();
        Run { child: child.expect("start nsenter") }
    };
    for round in 1..=20 {
        let mut run = start(round);
        counts_on(&bench);
        let inner = wait_for("criu-run", || children(pid_of(&run.child)).first().copied());
        kill(inner, Signal::SIGTERM).expect("send a signal");
        assert_eq!(run.ends().code(), Some(75), "round {round}: {}", messages(&bench));
    }
    fs::write(bench.scratch().join("go"), "").expect("let it end");
    assert_eq!(start(1).ends().code(), Some(7), "{}", messages(&bench));
    must_be_complete(&bench, lines(&bench).len() as u32);
}

#[test]
fn a_store_that_fails_in_any_way_leaves_the_program() {
    let Some(bench) = Bench::set_up("failing_stores") else { return };
    let stores = [
        "exit 3",
        "head -c 100000 >/dev/null; exit 7",
        "head -c 100000",
        "cat >/dev/null; exit 22",
    ];
    for save in stores.map(|it| format!("{{ {it}; }} >/dev/null")).into_iter().chain([
        // The disk is full.
        "cat >/dev/full".to_owned(),
        "ulimit -f 100; cat >image".to_owned(),
    ]) {
        let _ = fs::remove_file(bench.scratch().join("out"));
        let _ = fs::remove_file(bench.scratch().join("err"));
        let script = format!(
            "--save '{save}' --load true --on-failure ignore --network-lock skip \
             -- sh -c '{COUNT}' 100000"
        );
        let mut run = Run::start(&bench, &script);
        wait_until(&bench, 5);
        run.signal(Signal::SIGTERM);
        wait_for("the failure", || messages(&bench).contains("no checkpoint").then_some(()));
        let now = *lines(&bench).last().expect("a line");
        wait_until(&bench, now + 5);
        run.signal(Signal::SIGINT);
        assert_eq!(run.ends().signal(), Some(2), "{save}: {}", messages(&bench));
        let counted = lines(&bench);
        must_be_complete(&bench, *counted.last().expect("a line"));
    }
}

#[test]
fn nothing_comes_to_life_of_an_image_that_does_not_load() {
    let Some(bench) = Bench::set_up("does_not_load") else { return };
    let script = format!("--image job.img --network-lock skip -- sh -c '{COUNT}' 60");
    let mut run = Run::start(&bench, &script);
    wait_until(&bench, 5);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends().code(), Some(75), "{}", messages(&bench));
    let counted = lines(&bench);
    let size = fs::metadata(bench.scratch().join("job.img")).expect("the image").len();
    for load in [
        format!("head -c {} job.img", size / 2),
        format!("head -c {} job.img", size - 1),
        format!("head -c {} job.img; exit 3", size / 3),
        "cat job.img; exit 3".to_owned(),
        "head -c 100000 /dev/zero".to_owned(),
    ] {
        let script = format!(
            "--save cat --load '{load}' --exists true --network-lock skip -- sh -c 'echo 0'"
        );
        let status = Run::start(&bench, &script).ends();
        assert_eq!(status.code(), Some(123), "{load}: {}", messages(&bench));
        assert_eq!(lines(&bench), counted, "{load}: something has run");
    }
    assert_eq!(Run::start(&bench, &script).ends().code(), Some(7), "{}", messages(&bench));
    must_be_complete(&bench, 60);
}

/// Kills `criu-run` at a random moment of an eviction or of a restore. Then the program runs on, or
/// its image is whole and it goes on from there, with no line lost or doubled.
fn kill_at_any_moment(name: &str, cases: u64) {
    let Some(bench) = Bench::set_up(name) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CASES").unwrap_or(cases),
    };
    for seed in seeds {
        let mut random = Random::new(seed);
        let restores = random.one_in(2);
        let later = Duration::from_micros(random.below(1_500_000) as u64);
        let case = format!("SEED={seed}: restores: {restores}, after {later:?}");
        for file in ["out", "err", "job.img"] {
            let _ = fs::remove_file(bench.scratch().join(file));
        }
        let script = format!("--image job.img --network-lock skip -- sh -c '{COUNT}' 5000");
        let mut run = Run::start(&bench, &script);
        wait_until(&bench, 5);
        run.signal(Signal::SIGTERM);
        if restores {
            assert_eq!(run.ends().code(), Some(75), "{case}: {}", messages(&bench));
            run = Run::start(&bench, &script);
        }
        std::thread::sleep(later);
        let _ = kill(pid_of(&run.child), Signal::SIGKILL);
        run.ends();
        let end = must_not_be_lost(&bench, &script, &case);
        println!("{case}: {end}");
    }
}

/// The processes of this bench: they have its directory as theirs.
fn processes(bench: &Bench) -> Vec<(Pid, String)> {
    let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let here = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|it: PathBuf| it == bench.scratch())
    };
    let ours = pids.filter(|pid| *pid != std::process::id() as i32).filter(here);
    ours.map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        (Pid::from_raw(pid), name.trim().to_owned())
    })
    .collect()
}

fn must_not_be_lost(bench: &Bench, script: &str, case: &str) -> &'static str {
    // What is at work ends by itself: a checkpoint, or a restore but for who waits for its end.
    wait_for("the end of the work", || {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status.pid().is_none() {
                break;
            }
        }
        let busy = ["criu", "criu-checkpoint", "criu-sock-captu", "image-serve", "cat"];
        processes(bench).iter().all(|(_, name)| !busy.contains(&name.as_str())).then_some(())
    });
    let before = lines(bench);
    let running: Vec<Pid> =
        processes(bench).into_iter().filter(|it| it.1 == "sh").map(|it| it.0).collect();
    let counted = before.last().copied().unwrap_or(0);
    let outcome = if running.is_empty() { "its image restores" } else { "it runs" };
    let mut run = None;
    if running.is_empty() {
        assert!(bench.scratch().join("job.img").exists(), "{case}: LOST: {}", messages(bench));
        run = Some(Run::start(bench, script));
    }
    wait_until(bench, counted + 3);
    // All of it ends with the first process of its namespace.
    match &mut run {
        Some(run) => {
            run.signal(Signal::SIGINT);
            run.ends();
        }
        None => {
            for (pid, name) in processes(bench) {
                if ["sh", "criu-run-init", "criu-restore"].contains(&name.as_str()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }
    wait_for("the end of all", || {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status.pid().is_none() {
                break;
            }
        }
        processes(bench).is_empty().then_some(())
    });
    let counted = lines(bench);
    must_be_complete(bench, *counted.last().expect("a line"));
    outcome
}

#[test]
fn a_program_is_not_lost_when_criu_run_is_killed() {
    kill_at_any_moment("criu_run_is_killed", 8);
}

#[test]
#[ignore = "takes minutes: make check-load"]
fn a_program_is_not_lost_when_criu_run_is_killed_100_times() {
    kill_at_any_moment("criu_run_is_killed_100_times", 100);
}
