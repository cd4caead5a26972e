//! `criu-migrate --pre-copy`, with a stand-in for CRIU at both ends: rounds are sent while the
//! process runs, and whatever fails in one of them, it runs on here.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use tests::hold::{Hold, Life};
use tests::pipeline::Finished;
use tests::scene::Scene;

/// So much that one round does not leave little by itself.
const MEGABYTES: usize = 20;

/// A round is on its way, and stays there.
const STALLS: &str = "{ head -c 1000000; touch stalled; sleep 1000; } | $RECEIVE";

#[track_caller]
fn must_stay(scene: &Scene, hold: &Hold, finished: &Finished, reason: &str, case: &str) {
    let said = &finished.stderr;
    let last = said.last().map(String::as_str).unwrap_or_default();
    assert!(!finished.status.success(), "{case}: {said:?}");
    assert!(last.starts_with(&format!("criu-migrate: FAILED: {reason}")), "{case}: {said:?}");
    let end = format!("; process {} runs on here, and not at the other end", hold.pid());
    assert!(last.ends_with(&end), "{case}: {said:?}");
    assert_eq!(hold.life(), Life::Runs(hold.pid()), "{case}");
    scene.must_leave_nothing();
    assert_eq!(hold.copies(), [hold.pid()], "{case}: there are others");
}

#[test]
fn a_process_moves_after_rounds_in_which_it_runs() {
    // All of its memory changes between two rounds, so a second one is the last.
    let cases = [("--pre-copy", 2, "2 rounds"), ("--pre-copy=1", 1, "1 round")];
    for (option, rounds, said) in cases {
        let scene = Scene::new();
        let mut hold = Hold::start(scene.path(), MEGABYTES, false);
        let command = "echo $RECEIVE >told; STAND_IN_STEPS=there $RECEIVE";
        let finished = scene.migrate(hold.pid(), &[option, "--json"], command).run(&[]);
        finished.succeeded();
        let [last] = &finished.stderr[..] else { panic!("{option}: {:?}", finished.stderr) };
        assert!(last.contains(&format!(" in {said} before; frozen for ")), "{option}: {last}");
        let end = format!("; process {} is gone here, and runs at the other end", hold.pid());
        assert!(last.ends_with(&end), "{option}: {last}");
        let steps = scene.read("steps");
        assert_eq!(steps.matches("pre-end").count(), rounds, "{option}: {steps}");
        assert_eq!(steps.matches("\nfrozen").count(), 1, "{option}: {steps}");
        let result: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
        let before = result["bytes_before"].as_u64().expect("bytes");
        let least = (rounds * MEGABYTES) << 20;
        assert!(before > least as u64 && before < least as u64 + 1_000_000, "{before}");
        assert!(result["bytes"].as_u64().expect("bytes") > (MEGABYTES << 20) as u64);
        assert!(scene.read("told").contains(" --pre-copy "), "{}", scene.read("told"));
        // It finds out by itself whether all memory is of one moment.
        assert_ne!(hold.must_run(), hold.pid());
        assert_eq!(hold.copies().len(), 1);
        scene.must_leave_nothing();
        hold.kill();
    }
}

#[test]
fn a_small_process_moves_after_one_round() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let finished = scene.migrate(hold.pid(), &["--pre-copy"], "$RECEIVE").run(&[]);
    finished.succeeded();
    let last = finished.stderr.last().expect("a last line");
    assert!(last.contains(" in 1 round before; "), "{last}");
    hold.must_run();
    hold.kill();
}

#[test]
fn an_image_of_several_rounds_is_restored_from_a_directory_too() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let migrate = scene.run("criu-migrate").args(["-t", &hold.pid().to_string(), "--pre-copy"]);
    let migrate = migrate.args(["--restore-options", "--directory --join-ns none"]);
    migrate.args(["--", "$RECEIVE"]).run(&[]).succeeded();
    hold.must_run();
    hold.kill();
}

/// Whatever the step of a round, or of the dump after it.
#[test]
fn a_dump_that_fails_in_any_round_leaves_the_process_here() {
    let steps = ["pre-start", "pre-frozen", "pre-pages", "pre-end", "start", "frozen", "pages"];
    for step in steps.into_iter().chain(["inventory", "asking"]) {
        for (what, reason) in
            [("fail", "criu failed (status 1)"), ("die", "criu was killed (SIGKILL)")]
        {
            let scene = Scene::new();
            let hold = Hold::start(scene.path(), 2, false);
            let command = "env -u STAND_IN_FAULT $RECEIVE";
            let migrate = scene.migrate(hold.pid(), &["--pre-copy"], command);
            let finished = migrate.env("STAND_IN_FAULT", format!("{step}:{what}")).run(&[]);
            must_stay(&scene, &hold, &finished, reason, &format!("{what} at {step}"));
        }
    }
}

#[test]
fn a_restore_that_fails_after_rounds_leaves_the_process_here() {
    for step in ["start", "connected", "pages", "made", "asking"] {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        let command = format!("STAND_IN_FAULT={step}:fail $RECEIVE");
        let finished = scene.migrate(hold.pid(), &["--pre-copy"], &command).run(&[]);
        let reason = "at the other end: criu failed (status 1)";
        must_stay(&scene, &hold, &finished, reason, step);
    }
}

/// In the first round, between two, in the dump, and in the end.
#[test]
fn a_connection_that_is_cut_in_any_round_is_not_the_end_of_the_image() {
    const MIB: usize = 1 << 20;
    for length in [0, 1000, MIB, 2 * MIB + 10_000, 3 * MIB, 4 * MIB] {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        let command = format!("head -c {length} | $RECEIVE");
        let finished = scene.migrate(hold.pid(), &["--pre-copy"], &command).run(&[]);
        let reason =
            "at the other end: the connection is lost: it ended in the middle of the image";
        must_stay(&scene, &hold, &finished, reason, &format!("{length} bytes"));
    }
}

#[test]
fn a_signal_in_a_round_makes_it_give_up_and_the_process_stays() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), MEGABYTES, false);
        let migrate = scene.migrate(hold.pid(), &["--pre-copy"], STALLS).start();
        scene.wait_for_file("stalled");
        migrate.signal(signal);
        let finished = migrate.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32), "{:?}", finished.stderr);
        must_stay(&scene, &hold, &finished, signal.as_str(), signal.as_str());
    }
}

/// Each of the four processes of ours, by SIGKILL, in a round.
#[test]
fn a_process_of_ours_that_is_killed_in_a_round_loses_nothing() {
    for which in 0..4 {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), MEGABYTES, false);
        let migrate = scene.migrate(hold.pid(), &["--pre-copy"], STALLS).start();
        scene.wait_for_file("stalled");
        let ours = scene.processes_named("criu-migrate");
        assert_eq!(ours.len(), 4, "{ours:?}");
        kill(Pid::from_raw(ours[which].pid), Signal::SIGKILL).expect("kill it");
        let finished = migrate.finish();
        assert!(!finished.status.success());
        assert_eq!(hold.life(), Life::Runs(hold.pid()), "{which}: {:?}", finished.stderr);
        scene.must_leave_nothing();
        assert_eq!(hold.copies(), [hold.pid()]);
    }
}

/// A CRIU of a round has succeeded before: that says nothing of the last one.
#[test]
fn the_process_in_front_does_not_take_a_round_for_the_dump() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let migrate = scene.migrate(hold.pid(), &["--pre-copy"], "env -u STAND_IN_FAULT $RECEIVE");
    let migrate = migrate.env("STAND_IN_FAULT", "answered:hang").start();
    scene.wait_for_step("answered");
    let mut ours = scene.processes_named("criu-migrate");
    ours.retain(|process| process.arguments.contains(" -t "));
    let [_, holder] = &ours[..] else { panic!("{ours:?}") };
    kill(Pid::from_raw(holder.pid), Signal::SIGKILL).expect("kill it");
    let finished = migrate.finish();
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    let last = finished.stderr.last().expect("a last line");
    assert!(last.contains("perhaps at the other host too"), "{last}");
    hold.kill();
}

#[test]
fn what_cannot_be_is_wrong_usage() {
    let cases: [(&[&str], &str); 5] = [
        (&["--pre-copy", "-n", "2"], "--pre-copy goes over one connection only"),
        (&["--pre-copy=0"], "0"),
        (&["--pre-copy=x"], "x"),
        (&["--pre-copy", "--fs", "x"], "--fs"),
        (&["--pre-copy"], "--pre-copy: this kernel does not tell which pages have changed"),
    ];
    for (options, mentioned) in cases {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 1, false);
        let migrate = scene.migrate(hold.pid(), options, "touch begun; $RECEIVE $SHARD");
        let finished = migrate.env("STAND_IN_TRACKS_NOT", "1").run(&[]);
        finished.refused(2, mentioned);
        assert!(finished.stderr[0].contains(mentioned), "{options:?}: {:?}", finished.stderr);
        assert!(!scene.file("begun").exists());
        assert_eq!(scene.read("steps"), "", "CRIU was started");
        scene.must_leave_nothing();
    }
}
