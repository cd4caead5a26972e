//! `criu-run` with a stand-in for CRIU: what needs no root.
//!
//! The programs have no PID namespace here, as the stand-in restores none. With the real CRIU:
//! `tests/real-criu/runs.rs`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use tests::criu::pipe;
use tests::hold::{Hold, Life};
use tests::pipeline::{Filter, Finished, Running, collect_from, program};
use tests::random::Random;
use tests::scene::Scene;

/// Before `criu-run`: without descriptors of the test's, which the program would inherit, and
/// without the capability to make a PID namespace.
const ALONE: &str = r#"
for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    [ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || eval "exec $fd>&-"
done
[ "$(id -u)" -ne 0 ] || exec setpriv --bounding-set=-sys_admin --inh-caps=-all "$0" "$@"
"#;

/// Counts in the file `count` from where that has ended, as the stand-in starts it anew; ends with
/// status 7 when there is a file `go`.
const COUNT: &str = r#"n=$(tail -n 1 count 2>/dev/null); n=${n:-0}
until [ -e go ]; do n=$((n + 1)); echo $n >>count; sleep 0.01; done; exit 7"#;

fn run(scene: &Scene) -> Filter {
    scene.run_after(ALONE, "criu-run")
}

/// `criu-run OPTIONS -- sh -c COUNT`.
fn counting(scene: &Scene, options: &[&str]) -> Filter {
    run(scene).args(options).args(["--", "sh", "-c", COUNT])
}

fn counted(scene: &Scene) -> usize {
    scene.read("count").lines().count()
}

/// Waits until the program has counted on.
fn counts_on(scene: &Scene) {
    let before = counted(scene);
    scene.wait_until("the program counts", || counted(scene) > before + 2);
}

fn let_go(scene: &Scene) {
    fs::write(scene.file("go"), "").expect("let it go");
}

/// Whether there is an image that is not whole.
fn is_begun(scene: &Scene) -> bool {
    let entries = fs::read_dir(scene.file(".")).expect("the directory");
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains(".new"))
}

fn said(finished: &Finished) -> String {
    finished.stderr.join("\n")
}

/// A scene with an image of the counting program.
fn with_image(file: &str) -> Scene {
    let scene = Scene::new();
    let running = counting(&scene, &["--image", file]).start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(75), "{}", said(&finished));
    scene
}

#[test]
fn wrong_usage_starts_nothing() {
    let scene = Scene::new();
    let cases: [(&[&str], &str); 13] = [
        (&["--image", "x"], "the program is missing"),
        (&["--image", "x", "--"], "the program is missing"),
        (&["--", "touch", "started"], "it is not said where the image is kept"),
        (&["--save", "cat", "--", "touch", "started"], "--load"),
        (&["--load", "cat", "--", "touch", "started"], "--save"),
        (&["--image", "x", "--save", "cat", "--load", "cat", "--", "touch", "started"], "--save"),
        (&["--image", "x", "--exists", "true", "--", "touch", "started"], "--exists"),
        (&["--save", "cat", "--load", "cat", "-n", "2", "--", "touch", "started"], "SHARD"),
        (&["--image", "x", "--checkpoint-on", "KILL", "--", "touch", "started"], "not a signal"),
        (&["--image", "x", "--on-failure", "cry", "--", "touch", "started"], "cry"),
        (&["--image", "x", "--every", "0", "--", "touch", "started"], "0"),
        (&["--image", "x", "--checkpointed-status", "256", "--", "touch", "started"], "256"),
        (&["--image", "x", "touch", "--", "touch", "started"], "'touch' is no option"),
    ];
    for (arguments, words) in cases {
        let finished = run(&scene).args(arguments).start().finish();
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {}", said(&finished));
        assert!(said(&finished).contains(words), "{arguments:?}: {}", said(&finished));
    }
    let with_pipe = ALONE.replace("[ \"$(id", "exec 5< <(sleep 0)\n[ \"$(id");
    let filter = scene.run_after(&with_pipe, "criu-run");
    let finished = filter.args(["--image", "x", "--", "touch", "started"]).start().finish();
    assert_eq!(finished.status.code(), Some(2), "{}", said(&finished));
    assert!(said(&finished).contains("is a pipe, and PROGRAM could not be"), "{}", said(&finished));
    assert!(!scene.file("started").exists());
    scene.must_leave_nothing();
}

#[test]
fn without_an_image_the_program_is_started_and_its_end_is_ours() {
    let scene = Scene::new();
    let cases: [(&[&str], Option<i32>, Option<i32>); 5] = [
        (&["true"], Some(0), None),
        (&["sh", "-c", "exit 7"], Some(7), None),
        (&["sh", "-c", "kill -SEGV $$"], None, Some(11)),
        (&["no-such-program"], Some(127), None),
        (&["/etc/passwd"], Some(126), None),
    ];
    for (words, code, signal) in cases {
        let finished = run(&scene).args(["--image", "x", "--"]).args(words).start().finish();
        let end = (finished.status.code(), finished.status.signal());
        assert_eq!(end, (code, signal), "{words:?}: {}", said(&finished));
        if code.is_none_or(|code| code < 100) {
            let said = said(&finished);
            assert!(said.contains("no PID namespace: process ids from"), "{said}");
            assert!(said.contains("criu-run: ended: status"), "{said}");
        }
    }
    let finished = run(&scene).args(["-q", "--image", "x", "--", "true"]).start().finish();
    assert_eq!(said(&finished), "");
    scene.must_leave_nothing();
}

#[test]
fn whether_there_is_an_image_is_known_before_anything_is_started() {
    let scene = Scene::new();
    let touch = ["--", "touch", "started"];
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--save", "cat", "--load", "false", "--exists", "exit 1"], 0, "started: process"),
        (&["--save", "cat", "--load", "true"], 0, "started: process"),
        (&["--save", "cat", "--load", "false", "--exists", "exit 255"], 124, "(status 255)"),
        (
            &["--save", "cat", "--load", "cat", "--exists", "kill -9 $$"],
            124,
            "was killed (SIGKILL)",
        ),
        (&["--save", "cat", "--load", "exit 3"], 124, "the command of --load failed (status 3)"),
        (&["--image", "no/x.img"], 124, "no: no such directory"),
        (&["--save", "cat", "--load", "echo x; exit 3"], 123, "not restored"),
        (&["--save", "cat", "--load", "echo x"], 123, "not restored"),
        (&["--save", "cat", "--load", "true", "--exists", "true"], 123, "not restored"),
    ];
    for (options, code, words) in cases {
        let _ = fs::remove_file(scene.file("started"));
        let finished = run(&scene).args(options).args(touch).start().finish();
        assert_eq!(finished.status.code(), Some(code), "{options:?}: {}", said(&finished));
        assert!(said(&finished).contains(words), "{options:?}: {}", said(&finished));
        assert_eq!(scene.file("started").exists(), code == 0, "{options:?}");
    }
    scene.must_leave_nothing();
}

#[test]
fn a_signal_is_answered_while_the_store_is_asked() {
    for (signal, code, by) in [(Signal::SIGTERM, Some(75), None), (Signal::SIGINT, None, Some(2))] {
        // Without --exists, --load is asked.
        for options in [&["--load", "true", "--exists"][..], &["--load"]] {
            let scene = Scene::new();
            let store = "touch asked; sleep 1000 & wait";
            let filter = run(&scene).args(["--save", "cat"]).args(options).arg(store);
            let running = filter.args(["--", "touch", "started"]).start();
            scene.wait_for_file("asked");
            running.signal(signal);
            let finished = running.finish();
            let end = (finished.status.code(), finished.status.signal());
            assert_eq!(end, (code, by), "{}", said(&finished));
            assert!(!scene.file("started").exists());
            scene.must_leave_nothing();
        }
    }
}

#[test]
fn an_evicted_program_goes_on_and_its_status_is_told() {
    let scene = with_image("job.img.zst");
    let counted_so_far = counted(&scene);
    let running = counting(&scene, &["--image", "job.img.zst"]).start();
    counts_on(&scene);
    let_go(&scene);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(7), "{}", said(&finished));
    assert!(said(&finished).contains("goes on from its image"), "{}", said(&finished));
    assert!(counted(&scene) > counted_so_far);
    scene.must_leave_nothing();
    assert!(!is_begun(&scene));
}

#[test]
fn fresh_starts_the_program_and_keeps_the_image() {
    let scene = with_image("job.img");
    let before = fs::read(scene.file("job.img")).expect("the image");
    let filter = run(&scene).args(["--image", "job.img", "--fresh", "--", "touch", "started"]);
    filter.start().finish().succeeded();
    assert!(scene.file("started").exists());
    assert!(fs::read(scene.file("job.img")).expect("the image") == before);
}

#[test]
fn the_signal_and_the_status_of_a_checkpoint_can_be_chosen() {
    let scene = Scene::new();
    let options = ["--image", "x.img", "--checkpoint-on", "USR1", "--checkpointed-status", "9"];
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    running.signal(Signal::SIGUSR1);
    assert_eq!(running.finish().status.code(), Some(9));
    // Others are the program's.
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().status.signal(), Some(15));
    scene.must_leave_nothing();
}

#[test]
fn shards_are_saved_and_loaded_by_commands_of_their_own() {
    let scene = Scene::new();
    let options = ["-n", "3", "--save", "cat >$SHARD", "--load", "cat $SHARD 2>/dev/null || :"];
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(75), "{}", said(&finished));
    assert!(["0", "1", "2"].iter().all(|shard| scene.file(shard).exists()));
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    let_go(&scene);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(7), "{}", said(&finished));
}

/// How a store may fail, with words of the last line but one.
const FAILING_STORES: [(&str, &str); 5] = [
    ("exit 3", "status 3"),
    ("head -c 300000; exit 7", "status 7"),
    ("head -c 300000", "ended early"),
    ("cat >/dev/null; exit 22", "status 22"),
    ("cat >/dev/full", "status 1"),
];

#[test]
fn a_store_that_fails_leaves_the_program_and_the_signal_is_its() {
    for (store, words) in FAILING_STORES {
        let scene = Scene::new();
        let store = format!("{{ {store}; }} >/dev/null");
        let options = ["--save", &store, "--load", "true"];
        let running =
            counting(&scene, &[&options[..], &["--on-failure", "ignore"]].concat()).start();
        counts_on(&scene);
        running.signal(Signal::SIGTERM);
        running.stderr().wait_for("the failure", |line| line == "criu-run: no checkpoint");
        counts_on(&scene);
        let_go(&scene);
        let finished = running.finish();
        assert_eq!(finished.status.code(), Some(7), "{store}: {}", said(&finished));
        assert!(said(&finished).contains(words), "{store}: {}", said(&finished));

        fs::remove_file(scene.file("go")).expect("remove the file");
        let running = counting(&scene, &options).start();
        counts_on(&scene);
        running.signal(Signal::SIGTERM);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(15), "{store}: {}", said(&finished));
        scene.must_leave_nothing();
    }
}

#[test]
fn a_deadline_counts_from_the_signal_on() {
    let scene = Scene::new();
    let options = ["--save", "sleep 1000", "--load", "true", "--deadline", "1"];
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status.signal(), Some(15), "{}", said(&finished));
    assert!(said(&finished).contains("1 s were not enough"), "{}", said(&finished));
    scene.must_leave_nothing();
}

#[test]
fn an_old_image_stays_until_a_new_one_is_whole() {
    let scene = with_image("job.img");
    let before = fs::read(scene.file("job.img")).expect("the image");
    // The disk is full: no file may have more than 200 KB.
    let filter = scene.run_after(&format!("ulimit -f 200{ALONE}"), "criu-run");
    let filter = filter.args(["--image", "job.img", "--", "sh", "-c", COUNT]);
    let running = filter.start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.status.signal(), Some(15), "{}", said(&finished));
    assert!(fs::read(scene.file("job.img")).expect("the image") == before, "it was touched");
    assert!(!is_begun(&scene));
}

#[test]
fn the_last_good_snapshot_stays_and_is_what_is_restored() {
    let scene = Scene::new();
    // From the second on the store fails.
    let save = "[ ! -e image ] || exit 5; cat >new && mv new image";
    let options =
        ["--save", save, "--load", "cat image 2>/dev/null || :", "--every", "1", "--json"];
    let running = counting(&scene, &options).start();
    let lines = running.stderr();
    lines.wait_for("a snapshot", |line| line.contains(r#""event":"snapshot""#));
    let failed = |line: &str| line.contains(r#""event":"failed""#) && line.contains("status 5");
    lines.wait_for("a failure", failed);
    counts_on(&scene);
    running.signal(Signal::SIGINT);
    assert_eq!(running.finish().status.signal(), Some(2));
    let_go(&scene);
    let finished = counting(&scene, &options).start().finish();
    assert_eq!(finished.status.code(), Some(7), "{}", said(&finished));
    assert!(said(&finished).contains(r#""event":"restored""#), "{}", said(&finished));
}

#[test]
fn each_event_is_a_line_of_json_and_a_command() {
    let scene = Scene::new();
    let hook = r#"echo "$EVENT" >>events; printf '%s\n' "$EVENT_JSON" >>$EVENT.json"#;
    let options = ["--image", "x.img", "--json", "--on-event", hook];
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    running.signal(Signal::SIGTERM);
    let first = running.finish();
    assert_eq!(first.status.code(), Some(75), "{}", said(&first));
    let running = counting(&scene, &options).start();
    counts_on(&scene);
    let_go(&scene);
    let second = running.finish();
    assert_eq!(second.status.code(), Some(7), "{}", said(&second));

    let events = |finished: &Finished| -> Vec<serde_json::Value> {
        let lines = finished.stderr.iter().filter(|line| line.starts_with('{'));
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let (first, second) = (events(&first), events(&second));
    let names = |events: &[serde_json::Value]| -> Vec<String> {
        events.iter().map(|it| it["event"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&first), ["started", "freezing", "checkpointed"]);
    assert_eq!(names(&second), ["restored", "ended"]);
    for event in first.iter().chain(&second) {
        assert!(event["time"].as_u64().is_some_and(|time| time > 1_500_000_000), "{event}");
        assert!(event["uptime_millis"].is_u64(), "{event}");
        let name = event["event"].as_str().expect("a name");
        let by_command = scene.read(&format!("{name}.json"));
        assert_eq!(&serde_json::from_str::<serde_json::Value>(&by_command).expect("JSON"), event);
    }
    let mut by_command: Vec<String> = scene.read("events").lines().map(String::from).collect();
    by_command.sort();
    assert_eq!(by_command, ["checkpointed", "ended", "freezing", "restored", "started"]);
    assert_eq!(first[1]["snapshot"], false);
    let figures = &first[2];
    // The stand-in's image of such a process has a mebibyte.
    assert!(figures["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{figures}");
    assert!(figures["frozen_millis"].is_u64() && figures["bytes_per_second"].is_u64(), "{figures}");
    assert!(second[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{}", second[0]);
    assert!(second[0]["duration_millis"].is_u64() && second[0]["process"].is_u64());
    assert_eq!(second[1]["status"], 7);
}

/// A program that, at SIGTERM, has a last word.
const LAST_WORD: &str = "trap 'echo last; exit 0' TERM; echo first; touch ready; \
                         while :; do sleep 0.01; done";

#[test]
fn output_is_complete_when_all_processes_get_the_signal() {
    for kind in ["pipe", "socket", "file"] {
        let scene = Scene::new();
        // A signal for a checkpoint that never comes: SIGTERM is the program's.
        let filter =
            run(&scene).args(["--image", "x", "--checkpoint-on", "USR2", "--", "sh", "-c"]);
        let filter = filter.arg(LAST_WORD);
        let (read, running) = match kind {
            "pipe" => {
                let (read, write) = pipe(None).expect("a pipe");
                (Some(collect_from(read)), filter.stdout(write).start())
            }
            "socket" => {
                let (read, write) = UnixStream::pair().expect("a socket");
                (Some(collect_from(read)), filter.stdout(write).start())
            }
            _ => {
                let file = fs::File::create(scene.file("out")).expect("a file");
                (None, filter.stdout(file).start())
            }
        };
        scene.wait_for_file("ready");
        // As a service manager stops a control group.
        for process in scene.processes() {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
        }
        let finished = running.finish();
        assert_eq!(finished.status.code(), Some(0), "{kind}: {}", said(&finished));
        let output = match read {
            Some(read) => String::from_utf8(read.join().expect("the output")).expect("UTF-8"),
            None => scene.read("out"),
        };
        assert_eq!(output, "first\nlast\n", "{kind}");
        scene.must_leave_nothing();
    }
}

#[test]
fn a_program_that_is_deaf_to_the_signal_is_checkpointed_though_all_get_it() {
    let scene = Scene::new();
    let deaf = format!("trap '' TERM; {COUNT}");
    let running = run(&scene).args(["--image", "x.img", "--", "sh", "-c", &deaf]).start();
    counts_on(&scene);
    for process in scene.processes() {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
    }
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(75), "{}", said(&finished));
    scene.must_leave_nothing();
}

#[test]
fn input_comes_through_and_is_left_to_others_afterwards() {
    let scene = Scene::new();
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let filter =
        run(&scene).args(["--image", "x", "--", "sh", "-c", "read -r line; echo $line >got"]);
    let running = filter.stdin(theirs).start();
    std::io::Write::write_all(&mut &ours, b"a line\n").expect("write a line");
    running.finish().succeeded();
    assert_eq!(scene.read("got"), "a line\n");
    // The relay that waits for more has gone.
    scene.must_leave_nothing();
}

#[test]
fn as_process_1_of_a_container_it_reaps_and_a_signal_is_a_status() {
    let scene = Scene::new();
    let container = ALONE.replace("exec setpriv", "exec unshare --pid --mount-proc --fork setpriv");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: as_process_1_of_a_container: only root can make a PID namespace");
        return;
    }
    // What loses its parent, and ends: for as long as anything is left unreaped this goes on.
    let orphans = "for n in 1 2 3; do (sh -c 'sleep 0.0$0' $n &); done
        while grep -qsx sleep /proc/[0-9]*/comm; do read -r _ _ </proc/uptime; done
        while grep -qs '^State:.Z' /proc/[0-9]*/status; do read -r _ _ </proc/uptime; done
        kill -SEGV $$";
    let filter = scene.run_after(&container, "criu-run").args(["--image", "x", "--", "sh", "-c"]);
    let finished = filter.arg(orphans).start().finish();
    assert_eq!(finished.status.code(), Some(139), "{}", said(&finished));
    scene.must_leave_nothing();
}

#[test]
fn a_restored_program_is_waited_for_if_criu_restore_is_killed() {
    let scene = with_image("job.img");
    let running = counting(&scene, &["--image", "job.img"]).start();
    running.stderr().wait_for("the restore", |line| line.contains("goes on from its image"));
    let front = scene
        .processes()
        .into_iter()
        .find(|it| it.name == "criu-restore" && it.parent == running.pid().as_raw());
    kill(Pid::from_raw(front.expect("criu-restore").pid), Signal::SIGKILL).expect("kill it");
    counts_on(&scene);
    assert!(running.is_running());
    // It can be checkpointed, and its status is told.
    let_go(&scene);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(7), "{}", said(&finished));
    scene.must_leave_nothing();
}

#[test]
fn a_checkpoint_whose_front_is_killed_is_judged_by_its_result() {
    // Before CRIU was answered it fails, and after that it succeeds.
    for (step, code, signal) in [("pages", None, Some(15)), ("answered", Some(75), None)] {
        let scene = Scene::new();
        let filter = counting(&scene, &["--image", "job.img"]);
        let running = filter.env("STAND_IN_PAUSE", format!("{step}:700")).start();
        counts_on(&scene);
        running.signal(Signal::SIGTERM);
        scene.wait_for_step(step);
        let front = scene
            .processes()
            .into_iter()
            .find(|it| it.name == "criu-checkpoint" && it.parent == running.pid().as_raw());
        kill(Pid::from_raw(front.expect("criu-checkpoint").pid), Signal::SIGKILL).expect("kill it");
        let finished = running.finish();
        let end = (finished.status.code(), finished.status.signal());
        assert_eq!(end, (code, signal), "{step}: {}", said(&finished));
        scene.must_leave_nothing();
    }
}

/// The steps of the stand-in, in a dump and a restore.
const STEPS: [(bool, &[&str]); 2] = [
    (
        false,
        &[
            "start",
            "connected",
            "frozen",
            "pages",
            "inventory",
            "asking",
            "answered",
            "gone",
            "end",
        ],
    ),
    (true, &["start", "connected", "pages", "made", "asking", "answered", "runs", "end"]),
];

/// `criu-run --image job.img -- victim hold …`.
fn holding(scene: &Scene) -> Filter {
    let filter = run(scene).args(["--image", "job.img", "--"]).arg(program("victim"));
    filter.arg("hold").arg(scene.file("held")).arg("1")
}

/// `criu-run` was killed: when all that it had started has ended, the program runs, or it goes on
/// from its image.
fn must_not_be_lost(scene: &Scene, hold: &mut Hold, case: &str) {
    scene.wait_until("the end of the checkpoint", || {
        let busy = ["criu-checkpoint", "criu", "criu-sock-capture", "image-serve", "bash"];
        scene.processes().iter().all(|it| !busy.contains(&it.name.as_str()))
    });
    match hold.life() {
        Life::Runs(_) => {}
        Life::Gone => {
            // Its parent is this test now.
            hold.reap();
            let running = holding(scene).start();
            let went_on = |line: &str| line.contains("goes on from its image");
            running.stderr().wait_for(&format!("{case}: the restore"), went_on);
            hold.must_run();
            hold.kill();
            running.finish();
        }
        Life::Broken(how) => panic!("{case}: {how}"),
    }
    hold.kill();
    assert_eq!(scene.left(false), None, "{case}");
}

/// Starts it, and brings it to a checkpoint, or to a restore after that.
fn begin(scene: &Scene, hold: &Hold, restores: bool, pause: Option<&str>) -> Running {
    let paused = |filter: Filter| match pause {
        Some(step) => filter.env("STAND_IN_PAUSE", format!("{step}:200")),
        None => filter,
    };
    let first = if restores { holding(scene) } else { paused(holding(scene)) };
    let running = first.start();
    running.stderr().wait_for("its start", |line| line.contains("started"));
    hold.must_run();
    running.signal(Signal::SIGTERM);
    if !restores {
        return running;
    }
    assert_eq!(running.finish().status.code(), Some(75));
    let _ = fs::remove_file(scene.file("steps"));
    paused(holding(scene)).start()
}

#[test]
fn a_program_is_not_lost_when_criu_run_is_killed_at_any_step() {
    for (restores, steps) in STEPS {
        for step in steps {
            let scene = Scene::new();
            let mut hold = Hold::started_elsewhere(scene.path());
            let running = begin(&scene, &hold, restores, Some(step));
            scene.wait_for_step(step);
            // By SIGKILL.
            drop(running);
            must_not_be_lost(&scene, &mut hold, &format!("restores: {restores}, {step}"));
        }
    }
}

/// `SEED=N` runs one case again, and `CASES=N` so many.
#[test]
fn a_program_is_not_lost_when_criu_run_is_killed_at_any_moment() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CASES").unwrap_or(12),
    };
    for seed in seeds {
        let mut random = Random::new(seed);
        let restores = random.one_in(2);
        let later = Duration::from_micros(random.below(250_000) as u64);
        let case = format!("SEED={seed}: restores: {restores}, after {later:?}");
        let scene = Scene::new();
        let mut hold = Hold::started_elsewhere(scene.path());
        let running = begin(&scene, &hold, restores, None);
        std::thread::sleep(later);
        // By SIGKILL.
        drop(running);
        println!("{case}");
        must_not_be_lost(&scene, &mut hold, &case);
    }
}
