//! `criu-restore`, with the stand-in for CRIU: nothing comes to life of an image that is not whole,
//! and what does goes on.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::criu::pipe;
use tests::hold::{Hold, Life};
use tests::pipeline::{Filter, Finished, command};
use tests::scene::Scene;

const MEGABYTES: usize = 2;

/// A process that is gone, and its image in the file `image`, or in shards of it.
fn stored(shards: usize) -> (Scene, Hold) {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), MEGABYTES, false);
    let options = ["-n", &shards.to_string()];
    scene.checkpoint(hold.pid(), &options, "cat > image$SHARD").start().finish().succeeded();
    hold.must_be_gone();
    fs::remove_file(scene.file("steps")).expect("the steps of the dump");
    (scene, hold)
}

fn last(finished: &Finished) -> &str {
    finished.stderr.last().map_or("", String::as_str)
}

#[track_caller]
fn must_fail(scene: &Scene, hold: &Hold, finished: &Finished, words: &str) {
    assert_eq!(finished.status.code(), Some(1), "{words}: {:?}", finished.stderr);
    let last = last(finished);
    assert!(last.starts_with("criu-restore: FAILED: ") && last.contains(words), "{last}");
    assert!(last.ends_with("; nothing is restored"), "{last}");
    scene.must_leave_nothing();
    assert_eq!(hold.life(), Life::Gone);
}

#[test]
fn a_process_goes_on_from_a_command_from_shards_or_from_standard_input() {
    let (scene, mut hold) = stored(1);
    let finished = scene.restore(&[], "cat image").start().finish();
    finished.succeeded();
    assert!(last(&finished).starts_with("criu-restore: restored: 2.1 MB, "), "{finished:?}");
    hold.must_run();
    scene.must_leave_nothing();
    hold.kill();
    let image = File::open(scene.file("image")).expect("the image");
    scene.run("criu-restore").stdin(image).start().finish().succeeded();
    hold.must_run();
    scene.must_leave_nothing();
    hold.kill();
    scene.restore(&["--directory"], "cat image").start().finish().succeeded();
    hold.must_run();
    scene.must_leave_nothing();
    let (scene, hold) = stored(3);
    scene.restore(&["-n", "3"], "cat image$SHARD").start().finish().succeeded();
    hold.must_run();
    scene.must_leave_nothing();
}

#[test]
fn what_is_not_whole_is_not_restored() {
    let (scene, mut hold) = stored(1);
    for (command, words) in [
        ("head -c 1000000 image", "image-serve failed (status 1)"),
        ("cat image; exit 4", "the command failed (status 4)"),
        ("cat image | (cat; exit 5) | cat", "the command failed (status 5)"),
        ("exit 0", "image-serve failed (status 1)"),
        ("exit 3", "the command failed (status 3)"),
        ("no-such-command", "the command failed (status 127)"),
    ] {
        let finished = scene.restore(&[], command).start().finish();
        must_fail(&scene, &hold, &finished, words);
        let finished = scene.restore(&["--directory"], command).start().finish();
        must_fail(&scene, &hold, &finished, "");
    }
    scene.restore(&[], "cat image").start().finish().succeeded();
    hold.must_run();
    hold.kill();
}

#[test]
fn nothing_runs_when_criu_fails_before_it_was_told_yes() {
    let (scene, mut hold) = stored(1);
    for step in ["start", "connected", "pages", "made", "asking"] {
        for (what, words) in [("fail", "criu failed (status 1)"), ("die", "criu was killed")] {
            let filter = scene.restore(&[], "cat image");
            let filter = filter.env("STAND_IN_FAULT", format!("{step}:{what}"));
            must_fail(&scene, &hold, &filter.start().finish(), words);
        }
    }
    let errors = "Can't open file tmp/log on restore: No such file or directory\nfollows from it";
    let filter = scene.restore(&[], "cat image").env("STAND_IN_ERROR", errors);
    let finished = filter.env("STAND_IN_FAULT", "pages:fail").start().finish();
    must_fail(&scene, &hold, &finished, "criu failed (status 1)");
    let said = finished.stderr.join("\n");
    assert!(said.contains("Can't open file tmp/log") && said.contains("hint: "), "{said}");
    let log = finished.stderr.iter().find_map(|line| line.split_once("CRIU's log: "));
    assert!(fs::read_to_string(log.expect("its name").1).expect("it").contains("follows from it"));
    // Told yes, it was killed when the process ran already.
    let filter = scene.restore(&[], "cat image").env("STAND_IN_FAULT", "runs:die");
    let finished = filter.start().finish();
    assert_eq!(finished.status.code(), Some(1));
    let pid = hold.must_run();
    assert!(
        last(&finished).ends_with(&format!("process {pid} was restored and runs")),
        "{finished:?}"
    );
    hold.kill();
}

#[test]
fn an_id_that_is_taken_is_told_before_criu_is_started() {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), MEGABYTES, false);
    scene.checkpoint(hold.pid(), &["-R"], "cat > image").start().finish().succeeded();
    fs::remove_file(scene.file("steps")).expect("the steps of the dump");
    let finished = scene.restore(&[], "cat image").start().finish();
    assert_eq!(finished.status.code(), Some(1));
    let words = format!("process id {} of the tree is taken here by 'victim'", hold.pid());
    assert!(last(&finished).contains(&words), "{finished:?}");
    assert!(!scene.file("steps").exists(), "CRIU was started");
    assert_eq!(hold.copies(), [hold.pid()]);
    scene.must_leave_nothing();
}

#[test]
fn names_of_files_are_relative_to_the_caller_s_directory() {
    let (scene, hold) = stored(1);
    let options = ["--pidfile", "app.pid", "-o", "my.log"];
    scene.restore(&options, "cat image").start().finish().succeeded();
    assert_eq!(scene.read("app.pid"), hold.must_run().to_string());
    assert!(scene.read("my.log").contains("finished successfully"));
}

/// With its image in memory, each restore may be interrupted by any of us.
#[test]
fn whichever_of_us_is_killed_nothing_is_restored_and_nothing_stays() {
    let (scene, hold) = stored(1);
    for kills_front in [true, false] {
        let _ = fs::remove_file(scene.file("steps"));
        let filter = scene.restore(&[], "cat image").env("STAND_IN_FAULT", "asking:hang");
        let running = filter.start();
        scene.wait_for_step("asking");
        let front = running.pid().as_raw();
        let holder = scene.processes().into_iter().find(|it| it.parent == front);
        let pid = if kills_front { front } else { holder.expect("the second process").pid };
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
        running.finish();
        scene.must_leave_nothing();
        assert_eq!(hold.life(), Life::Gone);
    }
}

#[test]
fn a_signal_restores_nothing_and_ends_it() {
    let (scene, hold) = stored(1);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let _ = fs::remove_file(scene.file("stalled"));
        let running = scene.restore(&[], "head -c 500000 image; touch stalled; sleep 1000").start();
        scene.wait_for_file("stalled");
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32));
        let expected = format!("criu-restore: FAILED: {signal}; nothing is restored");
        assert_eq!(last(&finished), expected);
        scene.must_leave_nothing();
        assert_eq!(hold.life(), Life::Gone);
    }
}

#[test]
fn the_limit_holds_in_every_phase() {
    let cases = [
        ("", "head -c 500000 image; sleep 1000", "waited for the image"),
        ("", "trap '' TERM; while :; do sleep 1000; done", "waited for the image"),
        ("start:hang", "cat image", "waited for CRIU's restore"),
        ("made:hang", "cat image", "waited for CRIU's restore"),
    ];
    std::thread::scope(|scope| {
        for (fault, command, words) in cases {
            scope.spawn(move || {
                // On a busy machine the first may be over before that phase has begun.
                let runs = ["2", "8", "32"].into_iter().map(|seconds| {
                    let (scene, hold) = stored(1);
                    let filter = scene.restore(&["--time-limit", seconds], command);
                    let finished = filter.env("STAND_IN_FAULT", fault).start().finish();
                    (scene, hold, finished)
                });
                let mut runs = runs.inspect(|(_, _, finished)| println!("{:?}", finished.stderr));
                let ended_there = runs.find(|(_, _, finished)| last(finished).contains(words));
                let (scene, hold, finished) = ended_there.expect(words);
                must_fail(&scene, &hold, &finished, words);
            });
        }
    });
}

/// A shell in the place of `victim hold`: the stand-in starts its command line again, and by then
/// there is the file `restored`.
fn shell(scene: &Scene, script: &str) -> Child {
    let script =
        format!("cd {}; if [ -e restored ]; then {script}; fi; sleep 1000", scene.path().display());
    let mut shell = command("sh");
    shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("a shell")
}

#[test]
fn with_wait_it_stays_until_the_root_ends_and_ends_as_that() {
    let traps = "trap 'exit 7' USR1; trap 'exit 8' TERM; touch ready; while :; do sleep 0.01; done";
    let cases = [
        ("touch ready; exit 0", None, (Some(0), None)),
        ("touch ready; exit 7", None, (Some(7), None)),
        ("touch ready; ulimit -c 0; kill -SEGV $$", None, (None, Some(11))),
        (traps, Some(Signal::SIGUSR1), (Some(7), None)),
        (traps, Some(Signal::SIGTERM), (Some(8), None)),
        ("touch ready; exec sleep 1000", Some(Signal::SIGINT), (None, Some(2))),
    ];
    for (script, signal, (code, by_signal)) in cases {
        let scene = Scene::new();
        let mut child = shell(&scene, script);
        scene.checkpoint(child.id() as i32, &[], "cat > image").start().finish().succeeded();
        child.wait().expect("it is gone");
        File::create(scene.file("restored")).expect("a file");
        let running = scene.restore(&["--wait"], "cat image").start();
        scene.wait_for_file("ready");
        running.stderr().wait_for("restored", |line| line.contains(": restored: "));
        if let Some(signal) = signal {
            running.signal(signal);
        }
        let finished = running.finish();
        assert_eq!(
            (finished.status.code(), finished.status.signal()),
            (code, by_signal),
            "{script}"
        );
        scene.must_leave_nothing();
    }
}

#[test]
fn the_result_is_told_in_json_where_it_is_wanted() {
    let (scene, hold) = stored(1);
    let failed = scene.restore(&["--json", "-q"], "exit 6").run(&[]);
    let json: serde_json::Value = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert_eq!(json["result"], "failed");
    assert_eq!(json["cause"], "the command failed (status 6)");
    assert_eq!(json.get("process"), None);
    let line = File::create(scene.file("line")).expect("a file");
    let options = ["--json-fd", "9", "-q"];
    let finished = scene.restore(&options, "cat image").fd(9, line).start().finish();
    finished.succeeded();
    assert!(finished.stderr.is_empty(), "{finished:?}");
    let json: serde_json::Value = serde_json::from_str(&scene.read("line")).expect("JSON");
    assert_eq!(json["result"], "restored");
    assert_eq!(json["process"], hold.must_run());
    assert!(json["bytes"].as_u64().is_some_and(|bytes| bytes > (MEGABYTES << 20) as u64));
    assert!(json["duration_millis"].is_u64());
    assert_eq!(json["pid_namespace"], false);
}

#[test]
fn ignored_and_blocked_signals_and_closed_descriptors_change_nothing() {
    let launchers: [&[&str]; 5] = [
        &["env", "--ignore-signal=CHLD"],
        &["env", "--ignore-signal=PIPE"],
        &["env", "--block-signal=TERM,CHLD,USR1"],
        &["bash", "-c", "exec <&- >&- 2>&-; exec \"$0\" \"$@\""],
        &["bash", "-c", "exec 2>&-; exec \"$0\" \"$@\""],
    ];
    for launcher in launchers {
        let (scene, hold) = stored(2);
        let filter = scene.place(Filter::under(launcher, "criu-restore"));
        let finished = filter.args(["-n", "2", "--", "cat image$SHARD"]).start().finish();
        assert!(finished.status.success(), "{launcher:?}: {:?}", finished.stderr);
        hold.must_run();
        scene.must_leave_nothing();
    }
    let (scene, hold) = stored(1);
    let (read, write) = pipe(None).expect("a pipe");
    drop(read);
    scene.restore(&["-v"], "cat image").stderr_to(write).start().finish().succeeded();
    hold.must_run();
}

#[test]
fn progress_is_told_every_ten_seconds_and_when_it_is_asked_for() {
    let (scene, hold) = stored(1);
    let command =
        "head -c 500000 image; until [ -e go ]; do sleep 0.01; done; tail -c +500001 image";
    let running = scene.restore(&[], command).start();
    let line = running.stderr().wait_for("progress", |line| line.contains("; waiting for "));
    assert!(line.ends_with("B/s; waiting for the image"), "{line}");
    running.signal(Signal::SIGUSR1);
    let json = running.stderr().wait_for("a line of JSON", |line| line.starts_with('{'));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["result"], "going");
    File::create(scene.file("go")).expect("a file");
    running.finish().succeeded();
    hold.must_run();
}

#[test]
fn wrong_usage_is_told_before_anything_is_touched() {
    let cases: [(&[&str], &str); 9] = [
        (&["--page-server", "--", "cat"], "--page-server cannot be used"),
        (&["--lazy-pages", "--", "cat"], "--lazy-pages cannot be used"),
        (&["--auto-dedup", "--", "cat"], "--auto-dedup cannot be used"),
        (&["--shard", "2", "--", "cat $SHARD"], "is --shards meant?"),
        (&["-n", "2", "--", "cat"], "does not mention SHARD"),
        (&["-n", "2"], "the command that writes the shards is missing"),
        (&["--shell-job"], "--shell-job needs the terminal on standard input"),
        (&["--", "cat", "image"], "one argument after --"),
        (&["image"], "'image' is no option"),
    ];
    let scene = Scene::new();
    for (arguments, words) in cases {
        let finished = scene.run("criu-restore").args(arguments).run(&[]);
        finished.refused(2, &arguments.join(" "));
        assert!(last(&finished).contains(words), "{arguments:?}: {finished:?}");
    }
    assert!(!scene.file("steps").exists(), "CRIU was started");
}
