//! `criu-checkpoint`: the process is let go only when its image is safe.
//!
//! In every test the images directory is `dump`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, skip, wait_for};
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::stamper::{Stamper, are_of_one_moment};
use crate::victim::Victim;

/// A failure ends within 5 seconds of its cause, 3.5 of which it may wait for what is deaf to
/// SIGTERM. A busy machine takes longer; whatever isn't noticed lasts for ever.
pub(crate) const SOON: Duration = Duration::from_secs(45);

/// What makes a command give up, and end by it.
pub(crate) const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A checkpoint of the process, with these options, by this command.
fn checkpoint(bench: &Bench, pid: i32, options: &str, command: &str) -> Pipeline {
    fs::create_dir_all(bench.scratch().join("dump")).expect("create the images directory");
    let script = format!(
        "exec criu-checkpoint -t {pid} -D dump --network-lock skip {options} -- '{command}'"
    );
    Pipeline::start(bench, "checkpoint", &script)
}

/// The processes that work in the scratch directory: all that a pipeline has
/// started, and neither the victim nor this test.
pub(crate) fn processes(bench: &Bench) -> Vec<(i32, String)> {
    let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let here = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(bench.scratch()))
    };
    numbers.filter(here).map(|pid| (pid, name_of(pid))).collect()
}

/// A process's name. A CRIU that was not installed is started by its own dynamic
/// loader, whose name its process then has.
fn name_of(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if arguments.windows(13).any(|window| window == b"dump\0--stream") {
        return "criu".into();
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// The process with this name among them, when it is there.
fn process(bench: &Bench, name: &str) -> Pid {
    let find = || processes(bench).into_iter().find(|(_, found)| found == name);
    Pid::from_raw(wait_for(&format!("a process {name}"), find).0)
}

/// Fails the test unless nothing is left but files: no process, FIFO or socket.
fn must_leave_nothing(bench: &Bench, case: &str) {
    // What was killed may take a moment.
    wait_for(&format!("{case}: no process"), || processes(bench).is_empty().then_some(()));
    let files = fs::read_dir(bench.scratch().join("dump")).expect("list the images directory");
    let left: Vec<PathBuf> = files.map(|file| file.expect("list").path()).collect();
    for path in left {
        let kind = path.symlink_metadata().expect("look at a file").file_type();
        assert!(kind.is_file(), "{case}: left {}", path.display());
    }
}

/// Fails the test unless the checkpoint fails in time, says `words` in its last
/// line and that the process runs on, and that is so.
fn must_fail(bench: &Bench, stamper: &Stamper, case: &str, words: &str, pipeline: &mut Pipeline) {
    let since = Instant::now();
    assert_eq!(pipeline.status(), 1, "{case}: {}", pipeline.messages());
    assert!(since.elapsed() < SOON, "{case}: took {:?}", since.elapsed());
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with("criu-checkpoint: FAILED: "), "{case}: {messages}");
    assert!(last.contains(words), "{case}: no {words:?} in {messages}");
    assert!(last.ends_with("runs on"), "{case}: {messages}");
    stamper.must_run();
    must_leave_nothing(bench, case);
}

/// The image in the file `image`: the generations of its pages.
fn generations(bench: &Bench, stamper: &Stamper) -> Vec<u64> {
    let files = bench.directory("files");
    Pipeline::start(bench, "extract", "image-extract -D files < image").must_succeed();
    let generations = stamper.generations(&files);
    fs::remove_dir_all(&files).expect("remove the files");
    generations
}

#[test]
fn images_of_a_process_that_runs_on_are_of_one_moment() {
    let Some(bench) = Bench::set_up("of_one_moment") else {
        return;
    };
    let stamper = Stamper::start(&bench, 64);
    let mut random = Random::new(6);
    let mut newest = 0;
    for round in 0..20 {
        // Every other time among the last megabytes, which are in pipes when
        // CRIU is done.
        let stall = match round % 2 {
            0 => random.below(64 << 20),
            _ => (62 << 20) + random.below(5 << 20),
        };
        let millis = 100 + random.below(400);
        let command = format!("{{ head -c {stall}; sleep 0.{millis:03}; cat; }} > image");
        checkpoint(&bench, stamper.pid(), "-R", &command).must_succeed();
        let generations = generations(&bench, &stamper);
        assert!(are_of_one_moment(&generations), "round {round}: stalled at {stall}: torn");
        assert!(generations[0] > newest, "round {round}: the process did not run on");
        newest = generations[0];
        must_leave_nothing(&bench, "a checkpoint");
    }
    stamper.must_run();
}

/// The hazard is real: otherwise the test above would prove nothing.
#[test]
fn without_criu_checkpoint_a_process_that_runs_on_tears_its_image() {
    let name = "tears_its_image";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let stamper = Stamper::start(&bench, 64);
    let images = bench.directory("dump");
    for _ in 0..5 {
        let script = "rm -f dump.progress
            criu-sock-capture -D dump -p 3 3>dump.progress |
                { head -c $((64 * 1024 * 1024 - 100000)); sleep 1; cat; } > image";
        let mut pipeline = Pipeline::start(&bench, "dump", script);
        pipeline.wait_for_progress("dump.progress", "socket-init");
        bench.criu.dump(Image::Stream, &images, stamper.pid(), &["--leave-running"]).must_succeed();
        pipeline.must_succeed();
        if !are_of_one_moment(&generations(&bench, &stamper)) {
            return;
        }
    }
    skip::<()>(name, "five images were of one moment each");
}

#[test]
fn a_command_that_fails_at_any_time_lets_the_process_run_on() {
    let Some(bench) = Bench::set_up("fails_at_any_time") else {
        return;
    };
    let stamper = Stamper::start(&bench, 64);
    let cases = [
        ("at its start", "exit 3", "the command failed (status 3)"),
        ("not there", "no-such-command", "the command failed (status 127)"),
        ("in the middle", "head -c 30000000 >x; exit 7", "the command failed (status 7)"),
        ("stops reading", "head -c 30000000 >x", "the command ended early"),
        ("after the last byte", "cat >x; exit 22", "the command failed (status 22)"),
        ("a stage of it", "cat | (cat >x; exit 5) | cat", "the command failed (status 5)"),
        ("the last stage", "cat | (cat >x; exit 5)", "the command failed (status 5)"),
        ("killed", "head -c 30000000 >x; kill -9 $$", "was killed (SIGKILL)"),
    ];
    for (case, command, words) in cases {
        let mut pipeline = checkpoint(&bench, stamper.pid(), "", command);
        must_fail(&bench, &stamper, case, words, &mut pipeline);
        let log = fs::read_to_string(bench.scratch().join("dump/dump.log"));
        let log = log.unwrap_or_default();
        assert!(!log.contains("Dumping finished successfully"), "{case}: criu dump succeeded");
    }
}

#[test]
fn a_command_that_takes_too_long_lets_the_process_run_on() {
    let Some(bench) = Bench::set_up("takes_too_long") else {
        return;
    };
    let stamper = Stamper::start(&bench, 64);
    let cases = [
        ("in the middle", 1, "head -c 30000000 >x; sleep 1000", "waited for the command"),
        // CRIU must be done by then.
        ("after the last byte", 4, "cat >x; sleep 1000", "waited for the command"),
        // `bash -c` would pass SIGTERM on, or be killed itself.
        ("deaf to SIGTERM", 1, "trap : TERM; cat >x; while :; do sleep 1; done", "waited for"),
    ];
    for (case, seconds, command, words) in cases {
        let limit = format!("--time-limit {seconds}");
        let mut pipeline = checkpoint(&bench, stamper.pid(), &limit, command);
        // The cause is the end of that time.
        sleep(Duration::from_secs(seconds));
        must_fail(&bench, &stamper, case, words, &mut pipeline);
    }
    let deaf = "trap : TERM; cat >x$SHARD; while :; do sleep 1; done";
    let mut pipeline = checkpoint(&bench, stamper.pid(), "--time-limit 1 --shards 2", deaf);
    sleep(Duration::from_secs(1));
    must_fail(&bench, &stamper, "deaf shards", "waited for", &mut pipeline);
}

/// Kills what is called `name` while the command waits behind the last byte or,
/// with `early`, in the middle.
fn kill_one(name: &str, early: bool, words: &str) {
    let label = format!("kill_{name}_{early}");
    let Some(bench) = Bench::set_up(&label) else {
        return;
    };
    let stamper = Stamper::start(&bench, 64);
    let stall = match early {
        true => "head -c 30000000 >x; touch stalled; sleep 1000; cat >x",
        false => "cat >x; touch stalled; sleep 1000",
    };
    let mut pipeline = checkpoint(&bench, stamper.pid(), "", stall);
    wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
    kill(process(&bench, name), Signal::SIGKILL).expect("kill it");
    must_fail(&bench, &stamper, &label, words, &mut pipeline);
}

#[test]
fn a_criu_that_is_killed_in_the_dump_leaves_the_process_running() {
    kill_one("criu", true, "criu was killed (SIGKILL)");
}

#[test]
fn a_criu_that_is_killed_at_the_end_leaves_the_process_running() {
    kill_one("criu", false, "criu was killed (SIGKILL)");
}

#[test]
fn an_action_script_that_is_killed_leaves_the_process_running() {
    // It was executed as /proc/PID/exe.
    kill_one("exe", false, "criu failed");
}

#[test]
fn a_capture_that_is_killed_leaves_the_process_running() {
    kill_one("criu-sock-captu", true, "criu-sock-capture was killed (SIGKILL)");
}

#[test]
fn a_command_whose_shell_is_killed_leaves_the_process_running() {
    kill_one("bash", true, "the command was killed (SIGKILL)");
}

#[test]
fn a_dump_that_fails_before_the_script_is_asked_ends_the_pipeline() {
    let Some(bench) = Bench::set_up("before_the_script_is_asked") else {
        return;
    };
    let stamper = Stamper::start(&bench, 4);
    let mut pipeline = checkpoint(&bench, stamper.pid(), "--no-such-option", "cat >x; sleep 1000");
    must_fail(&bench, &stamper, "an option", "criu failed (status 1)", &mut pipeline);

    let victim = Victim::start(&bench, &["--undumpable", "--megabytes", "12"]);
    for command in ["cat >x; sleep 1000", "image-extract --verify"] {
        let mut pipeline = checkpoint(&bench, victim.pid(), "", command);
        must_fail(&bench, &stamper, "undumpable", "criu failed (status 1)", &mut pipeline);
    }
    victim.must_go_on(&victim.statuses());
}

#[test]
fn a_user_who_presses_control_c_gets_the_process_back() {
    let early = (Signal::SIGINT, "head -c 30000000 >x; touch stalled; sleep 1000; cat >x");
    let late = SIGNALS.map(|signal| (signal, "cat >x; touch stalled; sleep 1000"));
    for (signal, command) in late.into_iter().chain([early]) {
        let Some(bench) = Bench::set_up("control_c") else {
            return;
        };
        let stamper = Stamper::start(&bench, 64);
        let mut pipeline = checkpoint(&bench, stamper.pid(), "", command);
        wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
        let since = Instant::now();
        pipeline.signal(signal);
        // As a shell that stops its loop at a ^C wants to see it.
        assert_eq!(pipeline.status(), 128 + signal as i32);
        let last = pipeline.last_message();
        assert!(last.contains(&format!("FAILED: {signal}; frozen for ")), "{last}");
        assert!(since.elapsed() < SOON, "took {:?}", since.elapsed());
        stamper.must_run();
        must_leave_nothing(&bench, "a signal");
    }
}

#[test]
fn a_criu_checkpoint_that_is_killed_lets_the_process_run_on() {
    let Some(bench) = Bench::set_up("killed_itself") else {
        return;
    };
    for (case, all) in [("the first process", false), ("both", true)] {
        let stamper = Stamper::start(&bench, 16);
        let command = "cat >image; touch stalled; sleep 1000";
        let pipeline = checkpoint(&bench, stamper.pid(), "", command);
        wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
        match all {
            true => pipeline.signal(Signal::SIGKILL),
            false => kill(pipeline.pid(), Signal::SIGKILL).expect("kill it"),
        }
        wait_for(case, || processes(&bench).is_empty().then_some(()));
        stamper.must_run();
        fs::remove_file(bench.scratch().join("stalled")).expect("remove the mark");
    }
}

#[test]
fn a_process_is_gone_only_when_its_image_is_stored() {
    let Some(bench) = Bench::set_up("gone_only_when_stored") else {
        return;
    };
    let mut stamper = Stamper::start(&bench, 64);
    let since = Instant::now();
    let mut pipeline =
        checkpoint(&bench, stamper.pid(), "", "cat >image; touch here; sleep 1; touch stored");
    wait_for("the image", || bench.scratch().join("here").exists().then_some(()));
    let frozen = stamper.generation();
    let stored = || bench.scratch().join("stored").exists();
    while !stored() {
        assert!(stamper.is_there() || stored(), "gone before its image was stored");
        assert_eq!(stamper.generation(), frozen, "not frozen");
        sleep(Duration::from_millis(1));
    }
    pipeline.must_succeed();
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with("criu-checkpoint: done: "), "{messages}");
    let seconds = last.split("frozen for ").nth(1).and_then(|rest| rest.split(' ').next());
    let seconds: f64 = seconds.and_then(|it| it.parse().ok()).expect("how long it was frozen");
    // From when it was heard that it is frozen.
    assert!((0.5..since.elapsed().as_secs_f64()).contains(&seconds), "{messages}");
    assert!(last.ends_with("is gone"), "{messages}");
    stamper.must_be_gone();
    must_leave_nothing(&bench, "a checkpoint");

    restore(&bench, "criu-restore -- 'cat image'");
    stamper.must_run();
    assert!(stamper.generation() > frozen);
}

#[test]
fn an_images_directory_may_be_called_as_options_are() {
    let Some(bench) = Bench::set_up("called_as_options_are") else {
        return;
    };
    let mut stamper = Stamper::start(&bench, 4);
    let images = bench.directory("-d");
    let pid = stamper.pid();
    let script = format!("exec criu-checkpoint -t {pid} -D -d --network-lock skip -- 'cat >image'");
    Pipeline::start(&bench, "checkpoint", &script).must_succeed();
    stamper.must_be_gone();
    assert!(images.join("dump.log").exists(), "no log");
    restore(&bench, "criu-restore -D -d -- 'cat image'");
    stamper.must_run();
}

fn restore(bench: &Bench, script: &str) {
    let mut pipeline = Pipeline::start(bench, "restore", script);
    pipeline.must_succeed();
    let messages = pipeline.messages();
    let last = messages.lines().last().unwrap_or_default();
    assert!(last.starts_with("criu-restore: restored: "), "{messages}");
    wait_for("no process", || processes(bench).is_empty().then_some(()));
}

#[test]
fn three_shards_make_a_checkpoint_and_a_restore() {
    let Some(bench) = Bench::set_up("three_shards") else {
        return;
    };
    let mut stamper = Stamper::start(&bench, 64);
    let mut failing = checkpoint(&bench, stamper.pid(), "--shards 3", "cat >x$SHARD; exit $SHARD");
    must_fail(&bench, &stamper, "a shard", "of shard", &mut failing);
    checkpoint(&bench, stamper.pid(), "--shards 3", "zstd -q >$SHARD.zst").must_succeed();
    stamper.must_be_gone();
    must_leave_nothing(&bench, "shards");
    restore(&bench, "criu-restore --shards 3 -- 'zstd -dc $SHARD.zst'");
    stamper.must_run();
}

#[test]
fn a_user_who_interrupts_a_restore_restores_nothing() {
    let Some(bench) = Bench::set_up("interrupts_a_restore") else {
        return;
    };
    for signal in SIGNALS {
        let script = "export TMPDIR=$PWD
            exec criu-restore -- 'head -c 10000000 /dev/zero; touch stalled; sleep 1000'";
        let mut pipeline = Pipeline::start(&bench, "restore", script);
        wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
        let since = Instant::now();
        pipeline.signal(signal);
        assert_eq!(pipeline.status(), 128 + signal as i32);
        assert!(since.elapsed() < SOON, "took {:?}", since.elapsed());
        let last = pipeline.last_message();
        assert_eq!(last, format!("criu-restore: FAILED: {signal}; nothing is restored"));
        wait_for("no process", || processes(&bench).is_empty().then_some(()));
        fs::remove_file(bench.scratch().join("stalled")).expect("remove the mark");
        must_have_no_temporary_files(&bench);
    }
}

#[test]
fn a_criu_restore_that_is_killed_leaves_no_image_serve_that_waits() {
    let Some(bench) = Bench::set_up("restore_killed") else {
        return;
    };
    let command = "head -c 10000000 /dev/zero; touch stalled; sleep 1000";
    let script = format!("export TMPDIR=$PWD; exec criu-restore -- '{command}'");
    let mut pipeline = Pipeline::start(&bench, "restore", &script);
    wait_for("the stall", || bench.scratch().join("stalled").exists().then_some(()));
    kill(pipeline.pid(), Signal::SIGKILL).expect("kill it");
    let since = Instant::now();
    assert_eq!(pipeline.status(), 128 + Signal::SIGKILL as i32);
    wait_for("no process", || processes(&bench).is_empty().then_some(()));
    must_have_no_temporary_files(&bench);
    assert!(since.elapsed() < SOON, "took {:?}", since.elapsed());
}

/// Fails the test unless all that was made with `TMPDIR=$PWD` is gone.
pub(crate) fn must_have_no_temporary_files(bench: &Bench) {
    let files = fs::read_dir(bench.scratch()).expect("list the scratch directory").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let left: Vec<String> = names.filter(|name| name.starts_with("criu-stream-")).collect();
    assert!(left.is_empty(), "left {left:?}");
}

#[test]
fn an_image_serve_that_does_not_end_is_not_waited_for_long() {
    let Some(bench) = Bench::set_up("does_not_end") else {
        return;
    };
    let mut stamper = Stamper::start(&bench, 16);
    checkpoint(&bench, stamper.pid(), "", "cat >image").must_succeed();
    stamper.must_be_gone();
    let script = "mkdir bin
        printf '#!/bin/sh\n%s \"$@\"\nsleep 1000\n' \"$(command -v image-serve)\" >bin/image-serve
        chmod +x bin/image-serve
        # The filters beside it come first.
        cp $(command -v criu-restore) bin
        exec bin/criu-restore <image";
    let since = Instant::now();
    let mut pipeline = Pipeline::start(&bench, "restore", script);
    pipeline.must_succeed();
    assert!(since.elapsed() < SOON, "took {:?}", since.elapsed());
    let messages = pipeline.messages();
    assert!(messages.contains("warning: image-serve was killed (SIGKILL)"), "{messages}");
    stamper.must_run();
    wait_for("no process", || processes(&bench).is_empty().then_some(()));
}

/// Every second on a terminal, which `script` makes: the bytes, the rate, and what is waited for.
#[test]
fn progress_is_shown_on_a_terminal() {
    let name = "progress_on_a_terminal";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    if Command::new("script").arg("--version").output().is_err() {
        skip::<()>(name, "there is no script(1)");
        return;
    }
    let mut stamper = Stamper::start(&bench, 64);
    let must_show = |program: &str, command: &str, waiting: &str| {
        let pipeline = format!("script -qec \"{program} -- '{command}'\" terminal >/dev/null");
        Pipeline::start(&bench, "terminal", &pipeline).must_succeed();
        let shown =
            fs::read_to_string(bench.scratch().join("terminal")).expect("read the terminal");
        let line = shown.lines().find(|line| line.contains(waiting)).unwrap_or_default();
        assert!(line.contains(" MB") && line.contains("B/s"), "{waiting}: {shown}");
    };
    let dump = format!("criu-checkpoint -t {} --network-lock skip", stamper.pid());
    must_show(&dump, "head -c 30000000 >image; sleep 3; cat >>image", "MB of about ");
    stamper.must_be_gone();
    must_show("criu-restore", "cat image; sleep 3", "waiting for the image");
    stamper.must_run();
    must_show(&format!("{dump} -R"), "cat >image; sleep 3", "waiting for the command");
    stamper.must_run();
}

#[test]
fn what_is_not_whole_is_not_restored() {
    let Some(bench) = Bench::set_up("not_whole") else {
        return;
    };
    let mut stamper = Stamper::start(&bench, 16);
    checkpoint(&bench, stamper.pid(), "", "cat >image").must_succeed();
    stamper.must_be_gone();
    for (case, command) in [
        ("cut", "head -c 5000000 image"),
        ("failed after the last byte", "cat image; exit 4"),
        ("nothing", "exit 0"),
        ("not there", "no-such-command"),
    ] {
        let script = format!("criu-restore -- '{command}'");
        let since = Instant::now();
        let mut pipeline = Pipeline::start(&bench, "restore", &script);
        assert_eq!(pipeline.status(), 1, "{case}");
        assert!(since.elapsed() < SOON, "{case}: took {:?}", since.elapsed());
        let messages = pipeline.messages();
        let last = messages.lines().last().unwrap_or_default();
        assert!(last.ends_with("nothing is restored"), "{case}: {messages}");
        assert!(!Path::new(&format!("/proc/{}", stamper.pid())).exists(), "{case}: restored");
        wait_for("no process", || processes(&bench).is_empty().then_some(()));
    }
    restore(&bench, "criu-restore < image");
    stamper.must_run();
}
