//! `criu-migrate`, with a stand-in for CRIU at both ends: the process is killed here only when it
//! runs there, and the last line says for both ends where it runs.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::hold::{Hold, Life};
use tests::pipeline::{Filter, Finished};
use tests::scene::Scene;

/// The process runs on here, and nowhere else; the last line says so, and this.
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
fn a_process_moves_over_one_connection_or_several() {
    for shards in ["1", "2", "5"] {
        let scene = Scene::new();
        let mut hold = Hold::start(scene.path(), 8, false);
        let finished = scene.migrate(hold.pid(), &["-n", shards, "--json"], "$RECEIVE").run(&[]);
        finished.succeeded();
        let said = &finished.stderr;
        let [last] = &said[..] else { panic!("{shards} shards: {said:?}") };
        let end = format!("; process {} is gone here, and runs at the other end", hold.pid());
        assert!(last.starts_with("criu-migrate: done: ") && last.ends_with(&end), "{last}");
        let result: serde_json::Value =
            serde_json::from_slice(&finished.stdout).expect("the result as JSON");
        assert_eq!(result["result"], "done");
        assert_eq!(result["process_state"], "gone");
        assert_eq!(result["runs_at_host"], "runs");
        assert_ne!(hold.must_run(), hold.pid());
        assert_eq!(hold.copies().len(), 1);
        scene.must_leave_nothing();
        hold.kill();
    }
}

#[test]
fn nothing_is_frozen_or_sent_before_every_connection_has_answered() {
    let no_answer = "which is no answer of criu-migrate";
    let cases: [(&str, &[&str], &str, String); 8] = [
        ("refused", &[], "exit 255", "the connection failed (status 255)".into()),
        ("closed", &[], "true", "the connection is lost: it was closed".into()),
        (
            "silent",
            &["--time-limit", "1"],
            "cat >x",
            "1 s were not enough; waited for the answer of the other end".into(),
        ),
        (
            "another program",
            &[],
            "echo welcome; cat >x",
            format!("the other end has said 'welcome', {no_answer}"),
        ),
        (
            "another version",
            &[],
            "echo criu-migrate 7 ready 9.9; cat >x",
            "the other end has a criu-migrate of protocol 7 (version 9.9), and this is protocol 2 "
                .into(),
        ),
        ("no CRIU there", &[], "CRIU=none $RECEIVE", "at the other end: none: not found".into()),
        (
            "one of three",
            &["-n", "3"],
            "[ $SHARD != 1 ] || exit 7; $RECEIVE",
            "connection 1 failed (status 7)".into(),
        ),
        (
            "one of another version",
            &["-n", "2"],
            "if [ $SHARD = 1 ]; then echo criu-migrate 1 ready x; cat >x; else $RECEIVE; fi",
            "the other end has a criu-migrate of protocol 1 ".into(),
        ),
    ];
    for (case, options, command, reason) in cases {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 1, false);
        let finished = scene.migrate(hold.pid(), options, command).run(&[]);
        must_stay(&scene, &hold, &finished, &reason, case);
        assert_eq!(scene.read("steps"), "", "{case}: CRIU was started");
        assert_eq!(scene.read("x"), "", "{case}: something was sent");
    }
}

/// In the middle of a length, of a piece, and of the end.
#[test]
fn a_connection_that_is_cut_anywhere_is_not_the_end_of_the_image() {
    let whole = {
        let scene = Scene::new();
        let mut hold = Hold::start(scene.path(), 2, false);
        scene.migrate(hold.pid(), &[], "tee sent | $RECEIVE").run(&[]).succeeded();
        let sent = scene.file("sent").metadata().expect("what was sent").len();
        hold.kill();
        // Behind the end stands only `go`, and how it is cut into pieces may differ.
        sent - b"go\n".len() as u64
    };
    assert!(whole > 2 << 20, "{whole} bytes");
    for length in [0, 2, 4, 5, 1000, 1 << 20, (2 << 20) + 1] {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        // The way back stays open.
        let command = format!("head -c {length} | $RECEIVE");
        let finished = scene.migrate(hold.pid(), &[], &command).run(&[]);
        let case = format!("{length} of {whole} bytes");
        let reason =
            "at the other end: the connection is lost: it ended in the middle of the image";
        must_stay(&scene, &hold, &finished, reason, &case);
    }
}

/// Whatever the step at which it fails, before it was told to let the process run.
#[test]
fn a_restore_that_fails_leaves_the_process_here() {
    for step in ["start", "connected", "pages", "made", "asking"] {
        for (what, reason) in
            [("fail", "criu failed (status 1)"), ("die", "criu was killed (SIGKILL)")]
        {
            let scene = Scene::new();
            let hold = Hold::start(scene.path(), 2, false);
            let command = format!("STAND_IN_FAULT={step}:{what} STAND_IN_ERROR='no luck' $RECEIVE");
            let finished = scene.migrate(hold.pid(), &[], &command).run(&[]);
            let case = format!("{what} at {step}");
            let reason = format!("at the other end: {reason}");
            must_stay(&scene, &hold, &finished, &reason, &case);
            let said = finished.stderr.join("\n");
            assert_eq!(said.contains("no luck"), what == "fail", "{case}: {said}");
        }
    }
}

#[test]
fn a_dump_that_fails_restores_nothing_there() {
    for (step, expected) in
        [("start", "criu"), ("frozen", "criu"), ("pages", "criu"), ("asking", "criu")]
    {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        let migrate = scene.migrate(hold.pid(), &[], "env -u STAND_IN_FAULT $RECEIVE");
        let finished = migrate.env("STAND_IN_FAULT", format!("{step}:fail")).run(&[]);
        must_stay(&scene, &hold, &finished, expected, step);
    }
}

/// The one thing that cannot be known, and is said.
#[test]
fn an_answer_that_is_lost_leaves_the_process_here_and_says_that_it_may_run_there() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let command = "$RECEIVE | { read -r it; echo $it; read -r it; echo $it; }";
    let finished = scene.migrate(hold.pid(), &["--json"], command).run(&[]);
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    let last = finished.stderr.last().expect("a last line");
    let pid = hold.pid();
    let end =
        format!("; process {pid} runs on here, and perhaps runs at the other end too: look there");
    assert!(last.ends_with(&end), "{last}");
    let result: serde_json::Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    assert_eq!(result["runs_at_host"], "perhaps");
    // The one there is on this machine, and ends with what has failed here.
    assert!(matches!(hold.life(), Life::Runs(_)));
    assert!(hold.copies().contains(&pid), "it does not run here");
    hold.kill();
}

/// It was told to let the process run, and then failed: only it knows what became of it.
#[test]
fn a_restore_that_fails_at_the_last_moment_is_in_doubt() {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), 2, false);
    let command = "STAND_IN_FAULT=answered:fail $RECEIVE";
    let finished = scene.migrate(hold.pid(), &[], command).run(&[]);
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    let last = finished.stderr.last().expect("a last line");
    assert!(last.contains("FAILED: at the other end: criu failed (status 1); "), "{last}");
    assert!(last.ends_with("and perhaps runs at the other end too: look there"), "{last}");
    assert_eq!(hold.life(), Life::Runs(hold.pid()));
}

#[test]
fn a_dump_that_fails_at_the_last_moment_leaves_both_and_says_so() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let migrate = scene.migrate(hold.pid(), &[], "env -u STAND_IN_FAULT $RECEIVE");
    let finished = migrate.env("STAND_IN_FAULT", "answered:die").run(&[]);
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    let last = finished.stderr.last().expect("a last line");
    assert!(last.starts_with("criu-migrate: FAILED: criu was killed (SIGKILL)"), "{last}");
    let end = format!("; process {} runs on here, and runs at the other end", hold.pid());
    assert!(last.ends_with(&end), "{last}");
    assert_eq!(hold.copies().len(), 2);
    hold.kill();
}

#[test]
fn a_signal_makes_it_give_up_and_the_process_stays() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        let command = "{ head -c 1000000; touch stalled; sleep 1000; } | $RECEIVE";
        let migrate = scene.migrate(hold.pid(), &[], command).start();
        scene.wait_for_file("stalled");
        migrate.signal(signal);
        let finished = migrate.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32), "{:?}", finished.stderr);
        must_stay(&scene, &hold, &finished, signal.as_str(), signal.as_str());
    }
}

/// Only the answer that is due says where the process runs.
#[test]
fn a_signal_between_go_and_the_answer_does_nothing() {
    let scene = Scene::new();
    let mut hold = Hold::start(scene.path(), 2, false);
    let command = "STAND_IN_STEPS=there STAND_IN_PAUSE=answered:1000 $RECEIVE";
    let migrate = scene.migrate(hold.pid(), &[], command).start();
    scene.wait_until("the answer at the gate", || scene.read("there").contains("answered"));
    migrate.signal(Signal::SIGTERM);
    migrate.finish().succeeded();
    assert_ne!(hold.must_run(), hold.pid());
    hold.kill();
}

/// Each of the four processes of ours, by SIGKILL, while the image is on its way.
#[test]
fn a_process_of_ours_that_is_killed_loses_nothing() {
    for which in 0..4 {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        let command = "{ head -c 1000000; touch stalled; sleep 1000; } | $RECEIVE";
        let migrate = scene.migrate(hold.pid(), &[], command).start();
        scene.wait_for_file("stalled");
        // Here and there, the one in front before the one that holds.
        let ours = scene.processes_named("criu-migrate");
        assert_eq!(ours.len(), 4, "{ours:?}");
        kill(Pid::from_raw(ours[which].pid), Signal::SIGKILL).expect("kill it");
        let finished = migrate.finish();
        assert!(!finished.status.success());
        assert_eq!(hold.life(), Life::Runs(hold.pid()), "{which}: {:?}", finished.stderr);
        // A temporary directory may stay where both have no time to remove it: not here.
        scene.must_leave_nothing();
        assert_eq!(hold.copies(), [hold.pid()]);
    }
}

#[test]
fn a_time_limit_holds_while_the_other_end_stalls() {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), 2, false);
    let command = "STAND_IN_FAULT=pages:hang $RECEIVE";
    let finished = scene.migrate(hold.pid(), &["--time-limit", "2"], command).run(&[]);
    let reason = finished.stderr.last().expect("a last line").clone();
    // Both ends have the same limit.
    assert!(reason.contains("2 s were not enough; waited for "), "{reason}");
    assert_eq!(hold.life(), Life::Runs(hold.pid()));
    // All of the other end is below this one, which ends by force what has not ended in time.
    assert_eq!(scene.left(false), None);
}

/// Somebody who is no other end, or one who changes his mind.
#[test]
fn what_is_no_image_is_refused_and_the_other_end_is_told() {
    let cut = "failed the connection is lost: it ended in the middle of the image";
    // What is no image, or that nobody is left to say `go`.
    let cases: [(&[u8], &str); 4] = [
        (b"", cut),
        (b"\x05\0\0\0hello\0\0\0\0", "failed "),
        (b"\0\0\0\0", "failed "),
        (b"\0\0\0\0go\n", "failed "),
    ];
    for (sent, expected) in cases {
        let scene = Scene::new();
        let filter = scene.run("criu-migrate").args(["--receive", "--quiet"]);
        let finished = filter.run(sent);
        assert_eq!(finished.status.code(), Some(1), "{sent:?}: {:?}", finished.stderr);
        let said = String::from_utf8(finished.stdout).expect("text");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{sent:?}: {said}");
        assert!(lines[0].starts_with("criu-migrate 2 ready "), "{said}");
        assert!(lines[1].starts_with(expected), "{sent:?}: {said}");
        scene.must_leave_nothing();
    }
}

#[test]
fn the_command_gets_what_the_page_says_and_nothing_of_an_outer_run() {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), 1, false);
    let command = r#"echo "[$SHARD/$SHARDS] $RECEIVE" >>told; exit 3"#;
    let filter = scene.migrate(hold.pid(), &["-n", "2", "--time-limit", "77"], command);
    let filter = filter.env("RECEIVE", "outer").env("SHARD", "9").env("IMAGE_ID", "x");
    filter.run(&[]);
    let told = scene.read("told");
    let mut lines: Vec<&str> = told.lines().collect();
    lines.sort_unstable();
    let starts = "criu-migrate --receive --quiet --time-limit 77 --connection ";
    assert!(lines[0].starts_with(&format!("[0/2] {starts}")), "{told}");
    assert!(lines[0].ends_with(":0:2 --join-ns none"), "{told}");
    assert!(lines.iter().all(|line| !line.contains("outer")), "{told}");
}

#[test]
fn ssh_gets_its_options_before_the_host() {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), 1, false);
    let ssh = r#"printf '%s\n' "$@" >told; exit 255"#;
    let make = format!(
        "mkdir bin; printf '#!/bin/sh\\n%s\\n' '{}' >bin/ssh; chmod +x bin/ssh; PATH=$PWD/bin:$PATH",
        ssh.replace('\'', r"'\''")
    );
    let filter = scene.run_after(&make, "criu-migrate").args(["-t", &hold.pid().to_string()]);
    let filter = filter.args(["--ssh-option", "-p", "--ssh-option=2222", "--tcp-close", "far"]);
    let finished = filter.run(&[]);
    let last = finished.stderr.last().expect("a last line");
    assert!(last.ends_with("runs on here, and not at far"), "{last}");
    let told = scene.read("told");
    let words: Vec<&str> = told.lines().collect();
    let expected =
        ["-p", "2222", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "--", "far"];
    assert_eq!(words[..8], expected, "{told}");
    assert_eq!(words[8], "criu-migrate --receive --quiet --time-limit 3600");
}

#[test]
fn wrong_usage_is_found_before_anything_is_begun() {
    let wrong: [(&[&str], &str); 17] = [
        (&[], "--tree"),
        (&["-t", "1"], "either a host is needed, or a command after --"),
        (&["-t", "1", "--", "a", "b"], "one argument after --"),
        (&["-t", "1", "host", "--", "a"], "'host' is no option"),
        (&["-t", "1", "host", "other"], "'other' is no option"),
        (&["-t", "0", "host"], "0"),
        (&["-t", "1", "-n", "0", "host"], "0"),
        (&["-t", "1", "-n", "2", "--", "nc host 1"], "neither RECEIVE nor SHARD"),
        (&["-t", "1", "--leave-running", "host"], "both places"),
        (&["-t", "1", "--shell-job", "host"], "no terminal"),
        (&["-t", "1", "--page-server", "host"], "--page-server cannot be used"),
        (&["-t", "1", "--shard", "2", "host"], "is --shards meant?"),
        (
            &["-t", "1", "--restore-options", "--lazy-pages", "host"],
            "--restore-options: --lazy-pages",
        ),
        (&["--receive", "-t", "1"], "--tree"),
        (&["--receive", "host"], "'host' is no option"),
        (&["--receive", "--connection", "x:0:2"], "TOKEN:INDEX:COUNT"),
        (&["--directory", "-t", "1", "host"], "--directory"),
    ];
    for (words, mentioned) in wrong {
        let scene = Scene::new();
        let finished = scene.run("criu-migrate").args(words).run(&[]);
        finished.refused(2, &words.join(" "));
        assert!(finished.stderr[0].contains(mentioned), "{words:?}: {:?}", finished.stderr);
        assert!(finished.stdout.is_empty(), "{words:?}");
        scene.must_leave_nothing();
    }
    let terminal = || File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal");
    let receive = || Filter::new("criu-migrate").arg("--receive");
    let finished = receive().stdin(terminal()).start().finish();
    finished.refused(2, "stdin is a terminal");
    let finished = receive().stdout(terminal()).start().finish();
    finished.refused(2, "stdout is a terminal");
}

#[test]
fn a_process_that_is_not_there_is_told() {
    let scene = Scene::new();
    let finished = scene.run("criu-migrate").args(["-t", "999999999", "host"]).run(&[]);
    finished.refused(1, "no process");
    assert_eq!(finished.stderr, ["criu-migrate: process 999999999: not there"]);
}
