//! `criu-checkpoint`, with the stand-in for CRIU: what its caller has and what its command gets,
//! what is refused, what is told, and that the tree runs on after whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::criu::pipe;
use tests::hold::{Hold, Life};
use tests::pipeline::{Filter, Finished, command, program};
use tests::scene::Scene;

const MEGABYTES: usize = 2;

fn scene() -> (Scene, Hold) {
    let scene = Scene::new();
    let hold = Hold::start(scene.path(), MEGABYTES, false);
    (scene, hold)
}

/// The last line that was said.
fn last(finished: &Finished) -> &str {
    finished.stderr.last().map_or("", String::as_str)
}

/// It has failed, for this reason, and the tree runs on.
#[track_caller]
fn must_fail(scene: &Scene, hold: &Hold, finished: &Finished, words: &str) {
    assert_eq!(finished.status.code(), Some(1), "{words}: {:?}", finished.stderr);
    let last = last(finished);
    assert!(last.starts_with("criu-checkpoint: FAILED: ") && last.contains(words), "{last}");
    assert!(last.ends_with("runs on"), "{last}");
    hold.must_run();
    scene.must_leave_nothing();
}

/// All of the image is in this file.
#[track_caller]
fn must_be_whole(scene: &Scene, image: &str) {
    let image = File::open(scene.file(image)).expect("the image");
    Filter::new("image-extract").arg("--verify").stdin(image).start().finish().succeeded();
}

// --- What goes in ---------------------------------------------------------------------------

#[test]
fn the_command_gets_the_caller_s_environment_and_what_is_documented() {
    let (scene, hold) = scene();
    let names = ["dir", "name", "pid", "limit", "command", "shards", "PROGRESS", "BASH_FUNC_x%%"];
    let mut filter = scene.checkpoint(hold.pid(), &["-R"], "env -0 > env; cat > image");
    for name in names {
        filter = filter.env(name, "the caller's");
    }
    // Of an outer run, about another image.
    for name in ["SHARD", "SHARDS", "IMAGE_ID"] {
        filter = filter.env(name, "1");
    }
    filter.start().finish().succeeded();
    let text = scene.read("env");
    let environment: BTreeMap<&str, &str> =
        text.split('\0').filter_map(|variable| variable.split_once('=')).collect();
    for name in names.into_iter().filter(|name| !name.starts_with("BASH")) {
        assert_eq!(environment.get(name), Some(&"the caller's"), "{name}");
    }
    assert_eq!(environment["IMAGE_ID"].len(), 32);
    assert!(!environment.contains_key("SHARD") && !environment.contains_key("SHARDS"));
    // What bash adds, and we.
    let added = ["IMAGE_ID", "PWD", "OLDPWD", "SHLVL", "_"];
    let ours: Vec<_> = environment
        .keys()
        .filter(|name| !names.contains(name) && !added.contains(name))
        .filter(|name| std::env::var_os(name).is_none())
        .filter(|name| !["SCENE", "CRIU", "TMPDIR", "STAND_IN_STEPS"].contains(name))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
    assert_eq!(environment["TMPDIR"], scene.file("tmp").to_str().expect("UTF-8"));
}

#[test]
fn each_command_of_a_shard_knows_which_it_is_and_of_how_many() {
    let (scene, hold) = scene();
    let command = "echo $SHARD/$SHARDS/$IMAGE_ID > part$SHARD; cat > image$SHARD";
    scene.checkpoint(hold.pid(), &["-R", "-n", "3"], command).start().finish().succeeded();
    let parts = [0, 1, 2].map(|shard| scene.read(&format!("part{shard}")));
    let id = parts[0].trim().rsplit('/').next().expect("an id").to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(parts, [0, 1, 2].map(|shard| format!("{shard}/3/{id}\n")));
}

#[test]
fn the_command_has_the_caller_s_descriptors_and_no_other() {
    for fd in [3, 7, 8, 9] {
        let (scene, hold) = scene();
        // Tests that run beside this one lend descriptors too.
        let only = format!(
            "for f in /proc/self/fd/*; do n=${{f##*/}}
                [ $n -le 2 ] || [ $n = {fd} ] || eval \"exec $n>&-\"; done"
        );
        let image = File::create(scene.file("image")).expect("a file");
        let filter = scene.run_after(&only, "criu-checkpoint").fd(fd, image);
        let filter = filter.args(["-t", &hold.pid().to_string(), "-R", "--"]);
        filter.arg(format!("ls /proc/$$/fd > fds; cat >&{fd}")).start().finish().succeeded();
        must_be_whole(&scene, "image");
        let text = scene.read("fds");
        let fds: BTreeSet<i32> = text.lines().map(|line| line.parse().expect("fd")).collect();
        assert_eq!(fds, BTreeSet::from([0, 1, 2, fd]));
    }
}

#[test]
fn standard_descriptors_may_be_closed_and_are_closed_for_the_command_too() {
    for closed in ["0", "1", "2", "12", "02", "012"] {
        let (scene, hold) = scene();
        let close: Vec<String> = closed.chars().map(|fd| format!("{fd}>&-")).collect();
        let filter = scene.run_after(&format!("exec {}", close.join(" ")), "criu-checkpoint");
        let open = "for fd in 1 2; do [ ! -e /proc/$$/fd/$fd ] || echo $fd >> open; done";
        let filter = filter.args(["-t", &hold.pid().to_string(), "-R", "--"]);
        let finished = filter.arg(format!("{open}; cat > image")).start().finish();
        assert!(finished.status.success(), "without {closed}: {:?}", finished.stderr);
        must_be_whole(&scene, "image");
        let open: String = scene.read("open").split_whitespace().collect();
        let expected: String = "12".chars().filter(|fd| !closed.contains(*fd)).collect();
        assert_eq!(open, expected, "without {closed}");
        scene.must_leave_nothing();
    }
}

#[test]
fn ignored_and_blocked_signals_change_nothing_and_reach_the_command() {
    let cases = [
        "--ignore-signal=CHLD",
        "--ignore-signal=PIPE",
        "--ignore-signal=TERM,INT,HUP",
        "--block-signal=TERM,CHLD,USR1,ALRM",
        "--block-signal=PIPE",
    ];
    let masks = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    for case in cases {
        let (scene, hold) = scene();
        let plain = command("env").args([case, "bash", "-c", masks]).output().expect("env");
        let filter = scene.place(Filter::under(&["env", case], "criu-checkpoint"));
        let filter = filter.args(["-t", &hold.pid().to_string(), "-R", "-n", "2", "--"]);
        let finished = filter.arg(format!("{masks} > masks$SHARD; cat > x$SHARD")).start().finish();
        assert!(finished.status.success(), "{case}: {:?}", finished.stderr);
        let plain = String::from_utf8_lossy(&plain.stdout);
        assert_eq!(masks_in(&scene.read("masks0")), masks_in(&plain), "{case}");
        scene.must_leave_nothing();
    }
}

/// The numbers, without the two signals that the C library keeps for itself.
fn masks_in(text: &str) -> Vec<u64> {
    let masks = text.lines().filter_map(|line| line.split_once(':')).map(|(_, mask)| mask.trim());
    let numbers = masks.map(|mask| u64::from_str_radix(mask, 16).expect("a mask"));
    numbers.map(|mask| mask & !(0b11 << 31)).collect()
}

#[test]
fn names_of_files_are_relative_to_the_caller_s_directory() {
    let (scene, hold) = scene();
    fs::create_dir(scene.file("work")).expect("a directory");
    let options = ["-R", "-o", "my.log", "-W", "work", "--action-script", "./hook"];
    let hook = "#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >> stages\n";
    executable(&scene, "hook", hook);
    scene.checkpoint(hold.pid(), &options, "cat > image").start().finish().succeeded();
    assert!(scene.read("my.log").contains("Dumping finished successfully"));
    assert_eq!(scene.read("stages"), "pre-dump\npost-dump\n");
}

fn executable(scene: &Scene, name: &str, text: &str) {
    let path = scene.file(name);
    fs::write(&path, text).expect("a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

#[test]
fn a_script_of_the_user_s_may_say_no_too() {
    let (scene, hold) = scene();
    executable(&scene, "hook", "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ]\n");
    let options = ["--action-script", "./hook"];
    let finished = scene.checkpoint(hold.pid(), &options, "cat > image").start().finish();
    must_fail(&scene, &hold, &finished, "criu failed (status 1)");
}

#[test]
fn an_images_directory_may_have_any_length_and_name() {
    let long = "d/".repeat(120);
    for name in ["with space", "new\nline", "-d", "'$(touch bad)'", long.trim_end_matches('/')] {
        let (scene, hold) = scene();
        fs::create_dir_all(scene.file(name)).expect("a directory");
        let options = ["-R", "-D", name];
        scene.checkpoint(hold.pid(), &options, "cat > image").start().finish().succeeded();
        must_be_whole(&scene, "image");
        assert!(scene.file(name).join("dump.log").exists(), "{name}: no log");
        assert!(!scene.file("bad").exists());
        scene.must_leave_nothing();
    }
    let (scene, hold) = scene();
    let deep = scene.file("tmp").join("d/".repeat(120));
    fs::create_dir_all(&deep).expect("a directory");
    let filter = scene.checkpoint(hold.pid(), &["-R"], "cat > image").env("TMPDIR", &deep);
    filter.start().finish().succeeded();
    assert_eq!(fs::read_dir(&deep).expect("list it").count(), 0);
}

// --- Who must not be lost -------------------------------------------------------------------

#[test]
fn the_tree_is_gone_only_when_its_image_is_stored() {
    let (scene, mut hold) = scene();
    let command = "cat > image; until [ -e go ]; do sleep 0.01; done; touch stored";
    let running = scene.checkpoint(hold.pid(), &[], command).start();
    scene.wait_for_step("asking");
    scene.wait_until("all of the image", || {
        fs::metadata(scene.file("image")).is_ok_and(|it| it.len() > (MEGABYTES << 20) as u64)
    });
    assert_eq!(hold.copies(), [hold.pid()]);
    File::create(scene.file("go")).expect("a file");
    let finished = running.finish();
    finished.succeeded();
    assert!(scene.file("stored").exists());
    assert!(last(&finished).starts_with("criu-checkpoint: done: 2.1 MB, "), "{finished:?}");
    assert!(last(&finished).ends_with("is gone"), "{finished:?}");
    hold.must_be_gone();
    must_be_whole(&scene, "image");
    scene.must_leave_nothing();
}

#[test]
fn a_command_that_fails_at_any_time_lets_the_tree_run_on() {
    let cases = [
        ("exit 3", "the command failed (status 3)"),
        ("no-such-command", "the command failed (status 127)"),
        ("head -c 500000 > image; exit 7", "the command failed (status 7)"),
        ("head -c 500000 > image", "the command ended early"),
        ("head -c 2090000 > image", "the command ended early"),
        ("head -c 2090000 > image; exec <&-; sleep 0.5", "the command ended early"),
        ("cat > image; exit 22", "the command failed (status 22)"),
        ("cat | (cat > image; exit 5) | cat", "the command failed (status 5)"),
        ("head -c 500000 > image; kill -9 $$", "the command was killed (SIGKILL)"),
        ("cat > image; kill -34 $$", "the command was killed (signal 34)"),
    ];
    for (command, words) in cases {
        let (scene, hold) = scene();
        let finished = scene.checkpoint(hold.pid(), &[], command).start().finish();
        must_fail(&scene, &hold, &finished, words);
    }
    for (command, words) in [
        ("cat > x$SHARD; exit $SHARD", "the command of shard "),
        ("[ $SHARD = 0 ] || cat > x", "the command of shard 0 ended early"),
    ] {
        let (scene, hold) = scene();
        let finished = scene.checkpoint(hold.pid(), &["-n", "2"], command).start().finish();
        must_fail(&scene, &hold, &finished, words);
    }
}

#[test]
fn a_criu_that_fails_at_any_time_lets_the_tree_run_on() {
    for step in ["start", "connected", "frozen", "pages", "inventory", "asking"] {
        for (what, words) in [("fail", "criu failed (status 1)"), ("die", "criu was killed")] {
            let (scene, hold) = scene();
            let filter = scene.checkpoint(hold.pid(), &[], "cat > image");
            let filter = filter.env("STAND_IN_FAULT", format!("{step}:{what}"));
            let finished = filter.start().finish();
            must_fail(&scene, &hold, &finished, words);
            let warned = last(&finished).contains("TCP connections of the tree may be dead");
            assert_eq!(warned, what == "die", "{step}: {:?}", finished.stderr);
        }
        let (scene, hold) = scene();
        let filter = scene.checkpoint(hold.pid(), &[], "cat > image");
        let finished = filter.env("STAND_IN_FAULT", format!("{step}:end")).start().finish();
        must_fail(&scene, &hold, &finished, "");
    }
}

#[test]
fn a_criu_that_was_told_yes_and_fails_leaves_an_image_that_is_told_to_be_whole() {
    let (scene, mut hold) = scene();
    let filter = scene.checkpoint(hold.pid(), &["--json"], "cat > image");
    let finished = filter.env("STAND_IN_FAULT", "gone:die").run(&[]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(last(&finished).contains("; the image is whole"), "{finished:?}");
    assert!(last(&finished).ends_with("is gone"), "{finished:?}");
    let json: serde_json::Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    assert_eq!((&json["result"], &json["image_is_safe"]), (&"failed".into(), &true.into()));
    hold.must_be_gone();
    must_be_whole(&scene, "image");
}

/// Waits at the gate, with a command that does not end.
fn stalled(scene: &Scene, hold: &Hold) -> tests::pipeline::Running {
    let running = scene.checkpoint(hold.pid(), &[], "cat > image; sleep 1000").start();
    scene.wait_for_step("asking");
    scene.wait_until("the script", || scene.processes().iter().any(|it| it.name == "script"));
    running
}

#[test]
fn when_all_of_us_are_killed_the_answer_is_no() {
    let (scene, hold) = scene();
    let running = stalled(&scene, &hold);
    for process in scene.processes().iter().filter(|it| it.name.starts_with("criu-checkpoint")) {
        kill(Pid::from_raw(process.pid), Signal::SIGKILL).expect("kill it");
    }
    assert_eq!(running.finish().status.signal(), Some(9));
    hold.must_run();
    assert_eq!(scene.left(false), None);
    assert!(!scene.read("steps").contains("answered"), "{}", scene.read("steps"));
}

#[test]
fn whichever_of_us_is_killed_nothing_stays() {
    for kills_front in [true, false] {
        let (scene, hold) = scene();
        let running = stalled(&scene, &hold);
        let front = running.pid().as_raw();
        let holder = scene.processes().into_iter().find(|it| it.parent == front);
        let holder = holder.expect("the second process").pid;
        let pid = if kills_front { front } else { holder };
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
        let finished = running.finish();
        if !kills_front {
            assert_eq!(finished.status.code(), Some(1));
            let words = format!("the process {holder} that did the work was killed (SIGKILL)");
            assert!(last(&finished).contains(&words), "{finished:?}");
        }
        hold.must_run();
        scene.must_leave_nothing();
    }
}

#[test]
fn a_signal_to_all_processes_ends_it_and_not_criu() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let (scene, hold) = scene();
        let running = stalled(&scene, &hold);
        for process in scene.processes() {
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
        let finished = running.finish();
        // The signal comes to us and to the command at once.
        let by_signal = finished.status.signal() == Some(signal as i32);
        assert!(by_signal || finished.status.code() == Some(1), "{finished:?}");
        assert!(!last(&finished).contains("CRIU was killed"), "{finished:?}");
        assert!(last(&finished).ends_with("runs on"), "{finished:?}");
        hold.must_run();
        scene.must_leave_nothing();
    }
}

#[test]
fn a_signal_makes_it_give_up_and_end_by_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR2] {
        let (scene, hold) = scene();
        let running = stalled(&scene, &hold);
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32));
        let words = format!("criu-checkpoint: FAILED: {signal}; frozen for ");
        assert!(last(&finished).starts_with(&words), "{finished:?}");
        hold.must_run();
        scene.must_leave_nothing();
    }
}

#[test]
fn at_most_three_processes_are_ours() {
    let (scene, hold) = scene();
    let command = "cat > x$SHARD; sleep 1000";
    let running = scene.checkpoint(hold.pid(), &["-n", "2"], command).start();
    scene.wait_for_step("asking");
    let ours = || {
        let is_ours = |name: &str| name == "script" || name.starts_with("criu-checkpoint");
        scene.processes().into_iter().filter(|it| is_ours(&it.name)).count()
    };
    scene.wait_until("the script", || ours() >= 3);
    assert_eq!(ours(), 3);
    running.signal(Signal::SIGTERM);
    running.finish();
    hold.must_run();
}

// --- Limits ---------------------------------------------------------------------------------

/// What runs with a limit that is to end in a phase, which these words tell. On a busy machine it
/// may end before that phase has begun: then with a longer one.
fn limited(words: &str, run: impl Fn(&str) -> (Scene, Hold, Finished)) -> (Scene, Finished) {
    let runs = ["2", "8", "32"].into_iter().map(|seconds| (seconds, run(seconds)));
    let mut runs = runs.inspect(|(_, (_, _, finished))| println!("{:?}", finished.stderr));
    let ended_there = runs.find(|(_, (_, _, finished))| last(finished).contains(words));
    let (seconds, (scene, hold, finished)) = ended_there.expect(words);
    must_fail(&scene, &hold, &finished, &format!("FAILED: {seconds} s were not enough; {words}"));
    (scene, finished)
}

#[test]
fn the_limit_holds_in_every_phase() {
    let deaf = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' & \
                cat > x; while :; do sleep 1000; done";
    let sleeps = "cat > x; sleep 1000";
    let hook = "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != pre-dump ] || sleep 1000\n";
    let cases: [(&str, &str, &[&str], &str); 8] = [
        ("", "sleep 1000", &[], "waited for the command"),
        ("", sleeps, &[], "waited for the command"),
        ("", deaf, &[], "waited for the command"),
        ("start:hang", "cat > x", &[], "waited for CRIU's dump"),
        ("pages:hang", "cat > x", &[], "waited for CRIU's dump"),
        ("inventory:hang", "cat > x", &[], "waited for CRIU to ask"),
        ("", "cat > x", &["--action-script", "./hook"], "waited for CRIU's dump"),
        ("", "cat > x", &["--verify", "sleep 1000"], "waited for the image to be read back"),
    ];
    std::thread::scope(|scope| {
        for (fault, command, options, words) in cases {
            scope.spawn(move || {
                limited(words, |seconds| {
                    let (scene, hold) = scene();
                    executable(&scene, "hook", hook);
                    let options = [&["--time-limit", seconds], options].concat();
                    let filter = scene.checkpoint(hold.pid(), &options, command);
                    let finished = filter.env("STAND_IN_FAULT", fault).start().finish();
                    (scene, hold, finished)
                });
            });
        }
        // Told yes, it does not end. The image is good then.
        scope.spawn(|| {
            let (scene, finished) = limited("waited for CRIU to let the tree go", |seconds| {
                let (scene, hold) = scene();
                let options = ["--time-limit", seconds];
                let filter = scene.checkpoint(hold.pid(), &options, "cat > image");
                let finished = filter.env("STAND_IN_FAULT", "answered:hang").start().finish();
                (scene, hold, finished)
            });
            assert!(last(&finished).contains("; the image is whole"), "{finished:?}");
            must_be_whole(&scene, "image");
        });
    });
}

// --- What is read back ----------------------------------------------------------------------

#[test]
fn an_image_that_cannot_be_read_back_is_not_safe() {
    let cases = [
        ("head -c 1000000 image", "image-extract failed (status 1)"),
        ("cat image; exit 9", "the command that reads the image back failed (status 9)"),
        ("cat other", "image-extract failed (status 1)"),
        ("cat image image", "image-extract failed (status 1)"),
        ("true", "image-extract failed (status 1)"),
        ("no-such-command", ""),
    ];
    let (scene, hold) = scene();
    // Another image, of the same process and the same size.
    scene.checkpoint(hold.pid(), &["-R"], "cat > other").start().finish().succeeded();
    for (verify, words) in cases {
        let _ = fs::remove_file(scene.file("steps"));
        let options = ["--verify", verify];
        let finished = scene.checkpoint(hold.pid(), &options, "cat > image").start().finish();
        must_fail(&scene, &hold, &finished, words);
    }
    let options = ["-R", "--verify", "cat image"];
    scene.checkpoint(hold.pid(), &options, "cat > image").start().finish().succeeded();
    let shards = ["-R", "-n", "3", "--verify", "cat image$SHARD"];
    scene.checkpoint(hold.pid(), &shards, "cat > image$SHARD").start().finish().succeeded();
    let swapped = ["-n", "2", "--verify", "cat image0 # $SHARD"];
    let finished = scene.checkpoint(hold.pid(), &swapped, "cat > image$SHARD").start().finish();
    must_fail(&scene, &hold, &finished, "");
}

// --- Options --------------------------------------------------------------------------------

#[test]
fn wrong_usage_is_told_before_anything_is_touched() {
    let command = ["--", "cat > image"];
    let cases: [(&[&str], &str); 15] = [
        (&["--page-server"], "--page-server cannot be used: it sends the memory elsewhere"),
        (&["--page-serv"], "cannot be used"),
        (&["--lazy-pages"], "--lazy-pages cannot be used"),
        (&["--prev-images-dir", "x"], "--prev-images-dir cannot be used"),
        (&["--auto-dedup"], "--auto-dedup cannot be used"),
        (&["--ps-socket", "3"], "--ps-socket cannot be used"),
        (&["--address", "127.0.0.1"], "--address cannot be used"),
        (&["--shard", "2"], "CRIU has no option --shard: is --shards meant?"),
        (&["--shads=2"], "is --shards meant?"),
        (&["--verfy", "cat image"], "is --verify meant?"),
        (&["--time-limt", "5"], "is --time-limit meant?"),
        (&["-n", "2"], "does not mention SHARD"),
        (&["-n", "2", "--verify", "cat $SHARD"], "does not mention SHARD"),
        (&["-n", "0"], ""),
        (&["zstd"], "'zstd' is no option"),
    ];
    let (scene, hold) = scene();
    for (options, words) in cases {
        let filter = scene.run("criu-checkpoint").args(["-t", &hold.pid().to_string()]);
        let finished = filter.args(options).args(command).run(&[]);
        finished.refused(2, &options.join(" "));
        assert!(last(&finished).contains(words), "{options:?}: {finished:?}");
    }
    let last_option = ["--network-lock"];
    let finished = scene.run("criu-checkpoint").args(["-t", "1"]).args(last_option).run(&[]);
    finished.refused(2, "no value");
    assert!(last(&finished).contains("--network-lock needs a value"), "{finished:?}");
    for command in [&[][..], &["--"], &["--", "cat", "image"]] {
        let filter = scene.run("criu-checkpoint").args(["-t", &hold.pid().to_string()]);
        let finished = filter.args(command).run(&[]);
        finished.refused(2, &command.join(" "));
        assert!(last(&finished).contains("missing, or not one argument after --"), "{finished:?}");
    }
    assert!(!scene.file("steps").exists(), "CRIU was started");
    let unnamed = ["-R", "-n", "2", "--unnamed-shards"];
    scene.checkpoint(hold.pid(), &unnamed, "cat > $(mktemp x.XXXX)").start().finish().succeeded();
}

#[test]
fn what_is_not_there_is_told_before_anything_is_touched() {
    let (scene, hold) = scene();
    let missing = scene.checkpoint(hold.pid(), &[], "cat").env("CRIU", "/no/criu").run(&[]);
    missing.refused(1, "no CRIU");
    assert_eq!(last(&missing), "criu-checkpoint: /no/criu: not found");
    let finished = scene.checkpoint(hold.pid(), &["-D", "nowhere"], "cat").run(&[]);
    finished.refused(1, "no directory");
    assert_eq!(last(&finished), "criu-checkpoint: nowhere: not a directory");
    let finished = scene.checkpoint(i32::MAX - 1, &[], "cat").run(&[]);
    finished.refused(1, "no process");
    assert!(last(&finished).ends_with("not there"), "{finished:?}");
    scene.must_leave_nothing();
}

// --- What is told ---------------------------------------------------------------------------

#[test]
fn the_first_errors_of_criu_are_told_with_a_hint_and_the_log_is_kept() {
    let cases = [
        ("inet: Connected TCP socket, consider using --tcp-established option.", "--tcp-close"),
        ("Can't dump ghost file /x of 3145728 size, increase limit", "--ghost-limit"),
        ("File tmp/log has bad size 5 (expect 4)", "another size"),
        ("util: execvp(\"iptables-restore\") failed: No such file or directory", "nftables"),
    ];
    for (error, hint) in cases {
        let (scene, hold) = scene();
        let errors = format!("{error}\nDump files (pid: 1) failed with -1");
        let filter = scene.checkpoint(hold.pid(), &[], "cat > image");
        let filter = filter.env("STAND_IN_FAULT", "frozen:fail").env("STAND_IN_ERROR", errors);
        let finished = filter.start().finish();
        must_fail(&scene, &hold, &finished, "criu failed (status 1)");
        let said = finished.stderr.join("\n");
        let first = finished.stderr.iter().find(|line| line.contains("Error ("));
        assert!(first.is_some_and(|line| line.ends_with(error)), "{said}");
        assert!(said.contains("hint: ") && said.contains(hint), "{said}");
        let log = finished.stderr.iter().find_map(|line| line.split_once("CRIU's log: "));
        let log = fs::read_to_string(log.expect("the log's name").1).expect("the log");
        assert!(log.contains(error));
    }
    // Where the caller wants it.
    let (scene, hold) = scene();
    let filter = scene.checkpoint(hold.pid(), &["-o", "my.log"], "cat > image");
    let finished = filter.env("STAND_IN_FAULT", "frozen:fail").start().finish();
    must_fail(&scene, &hold, &finished, "criu failed (status 1)");
    let named = format!("CRIU's log: {}", scene.file("my.log").display());
    assert!(finished.stderr.iter().any(|line| line.ends_with(&named)), "{finished:?}");
}

#[test]
fn a_reader_of_messages_that_goes_or_stalls_changes_nothing() {
    let (scene, mut hold) = scene();
    let (read, write) = pipe(None).expect("a pipe");
    drop(read);
    let filter = scene.checkpoint(hold.pid(), &["-v", "-R"], "cat > image").stderr_to(write);
    filter.start().finish().succeeded();
    // A pipe that is full.
    let (read, write) = pipe(None).expect("a pipe");
    let mut full = File::from(write.try_clone().expect("a descriptor"));
    full.write_all(&vec![b'x'; 64 << 10]).expect("as much as it takes");
    let filter = scene.checkpoint(hold.pid(), &["-v"], "cat > image").stderr_to(write);
    let running = filter.start();
    scene.wait_until("its end", || hold.copies().is_empty());
    hold.must_be_gone();
    must_be_whole(&scene, "image");
    drop(full);
    let mut said = String::new();
    let reader = std::thread::spawn(move || {
        File::from(read).read_to_string(&mut said).expect("messages");
        said
    });
    running.finish().succeeded();
    let said = reader.join().expect("messages");
    assert!(said.trim_end().ends_with("is gone"), "{}", &said[64 << 10..]);
}

#[test]
fn progress_is_told_every_ten_seconds_and_when_it_is_asked_for() {
    let (scene, hold) = scene();
    let command = "cat > image; until [ -e go ]; do sleep 0.01; done";
    let running = scene.checkpoint(hold.pid(), &["-R"], command).start();
    scene.wait_for_step("asking");
    running.signal(Signal::SIGUSR1);
    let json = running.stderr().wait_for("a line of JSON", |line| line.starts_with('{'));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["result"], &json["process"]), (&"going".into(), &hold.pid().into()));
    let line = running.stderr().wait_for("progress", |line| line.contains("; waiting for "));
    assert!(line.starts_with("criu-checkpoint: 2.1 MB of about "), "{line}");
    assert!(line.ends_with("B/s; waiting for the command"), "{line}");
    File::create(scene.file("go")).expect("a file");
    running.finish().succeeded();
}

#[test]
fn the_result_is_told_in_json_where_it_is_wanted() {
    let (scene, mut hold) = scene();
    let finished = scene.checkpoint(hold.pid(), &["--json", "-q"], "cat > x; exit 4").run(&[]);
    let json: serde_json::Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    assert_eq!(json["result"], "failed");
    assert_eq!(json["process_state"], "runs");
    assert_eq!(json["image_is_safe"], false);
    assert_eq!(json["cause"], "the command failed (status 4)");
    let line = File::create(scene.file("line")).expect("a file");
    let options = ["--json-fd", "9", "-q"];
    let command = "echo $IMAGE_ID > id; cat > image";
    let finished = scene.checkpoint(hold.pid(), &options, command).fd(9, line).start().finish();
    finished.succeeded();
    assert!(finished.stderr.is_empty(), "{finished:?}");
    let json: serde_json::Value = serde_json::from_str(&scene.read("line")).expect("JSON");
    assert_eq!(json["result"], "done");
    assert_eq!(json["process"], hold.pid());
    assert_eq!(json["process_state"], "gone");
    assert_eq!(json["image_is_safe"], true);
    assert_eq!(json["image_id"], scene.read("id").trim());
    assert!(json["bytes"].as_u64().is_some_and(|bytes| bytes > (MEGABYTES << 20) as u64));
    assert!(json["frozen_millis"].is_u64());
    assert_eq!(json.get("cause"), None);
    hold.must_be_gone();
    assert_eq!(hold.life(), Life::Gone);
    let version = Filter::new("criu-checkpoint").arg("--version").run(&[]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("criu-checkpoint "));
}

#[test]
fn where_there_is_no_bash_sh_runs_the_command_and_that_is_said() {
    let (scene, hold) = scene();
    let path = scene.file("bin");
    fs::create_dir(&path).expect("a directory");
    std::os::unix::fs::symlink("/bin/cat", path.join("cat")).expect("a link");
    let filter = scene.checkpoint(hold.pid(), &["-R"], "cat > image").env("PATH", &path);
    let finished = filter.start().finish();
    finished.succeeded();
    assert!(finished.stderr[0].contains("there is no bash: sh runs the command"), "{finished:?}");
    assert!(program("criu-checkpoint").exists());
    must_be_whole(&scene, "image");
}
