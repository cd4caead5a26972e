//! `criu-checkpoint --increments`, with the stand-in for CRIU: what an image builds on, that the
//! process is held as ever, and that no chain of images is restored that lacks one.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::hold::{Hold, Life};
use tests::pipeline::Finished;
use tests::scene::Scene;

/// Stores an image under its id, and puts it at the end of the list of its chain.
const STORE: &str = r#"set -e; cat > $IMAGE_ID
    { [ -z "$PARENT_ID" ] || cat chain; echo $IMAGE_ID; } > chain.new; mv chain.new chain"#;

struct Series {
    scene: Scene,
    hold: Hold,
}

impl Series {
    fn start() -> Series {
        let scene = Scene::new();
        let hold = Hold::start(scene.path(), 2, false);
        fs::create_dir(scene.file("series")).expect("a directory");
        Series { scene, hold }
    }

    fn checkpoint(&self, options: &[&str], variables: &[(&str, &str)], command: &str) -> Finished {
        let options = [&["--increments", "series", "--json"], options].concat();
        let mut filter = self.scene.checkpoint(self.hold.pid(), &options, command);
        for (name, value) in variables {
            filter = filter.env(name, value);
        }
        filter.run(&[])
    }

    /// A checkpoint that succeeds: the image's id, and the one that it builds on.
    #[track_caller]
    fn image(&self, options: &[&str]) -> (String, Option<String>) {
        let finished = self.checkpoint(options, &[], STORE);
        finished.succeeded();
        self.scene.must_leave_nothing();
        ids(&finished)
    }

    fn chain(&self) -> Vec<String> {
        self.scene.read("chain").lines().map(str::to_owned).collect()
    }
}

#[track_caller]
fn ids(finished: &Finished) -> (String, Option<String>) {
    let result: Value = serde_json::from_slice(&finished.stdout).expect("the result as JSON");
    let id = |name: &str| result.get(name).map(|id| id.as_str().expect("an id").to_owned());
    (id("image_id").expect("an id"), id("parent_id"))
}

#[test]
fn the_first_image_is_whole_and_each_other_one_builds_on_the_last() {
    let mut series = Series::start();
    let mut ids = Vec::new();
    for number in 0..3 {
        let (id, parent) = series.image(&["-R"]);
        assert_eq!(parent.as_ref(), ids.last(), "{number}");
        series.hold.must_run();
        ids.push(id);
    }
    // With the last one it goes.
    let (id, parent) = series.image(&[]);
    assert_eq!(parent.as_ref(), ids.last());
    ids.push(id);
    series.hold.must_be_gone();
    assert_eq!(series.chain(), ids);
    let left = fs::read_dir(series.scene.file("series")).expect("the directory").count();
    assert_eq!(left, 0, "something can still be built on");
    // A stranger in the chain, a link that is missing, and another order are no image.
    let [first, second, third, fourth] = &ids[..] else { panic!("{ids:?}") };
    for chain in [
        format!("{first} {third} {fourth}"),
        format!("{first} {second} {fourth}"),
        format!("{first} {third} {second} {fourth}"),
        format!("{second} {third} {fourth}"),
    ] {
        let finished = series.scene.restore(&[], &format!("image-combine {chain}")).run(&[]);
        assert_eq!(finished.status.code(), Some(1), "{chain}: {:?}", finished.stderr);
        assert_eq!(series.hold.life(), Life::Gone, "{chain}");
    }
    // Nor is an increment alone.
    let finished = series.scene.restore(&[], &format!("cat {fourth}")).run(&[]);
    assert_eq!(finished.status.code(), Some(1), "{:?}", finished.stderr);
    let said = finished.stderr.join("\n");
    assert!(said.contains("an increment of image"), "{said}");
    series.scene.restore(&[], "image-combine $(cat chain)").run(&[]).succeeded();
    series.hold.must_run();
    series.hold.kill();
}

/// What has changed between the last image and one that failed is known to nobody any more.
#[test]
fn after_a_failure_the_image_is_whole_again() {
    let series = Series::start();
    let faults: [&[(&str, &str)]; 4] = [
        &[("STAND_IN_FAULT", "pages:fail")],
        &[("STAND_IN_FAULT", "pages:die")],
        &[("STAND_IN_FAULT", "asking:fail")],
        &[("STAND_IN_FAULT", "answered:die")],
    ];
    let mut failures: Vec<(String, Finished)> = Vec::new();
    let (_, parent) = series.image(&["-R"]);
    assert_eq!(parent, None);
    for fault in faults {
        let finished = series.checkpoint(&["-R"], fault, STORE);
        failures.push((format!("{fault:?}"), finished));
        series.hold.must_run();
        let (_, parent) = series.image(&["-R"]);
        assert_eq!(parent, None, "{fault:?}");
        assert_eq!(series.chain().len(), 1, "{fault:?}");
    }
    failures.push(("false".into(), series.checkpoint(&["-R"], &[], "cat > x; false")));
    assert_eq!(series.image(&["-R"]).1, None, "after a command that failed");
    for (case, finished) in failures {
        assert_eq!(finished.status.code(), Some(1), "{case}: {:?}", finished.stderr);
        let last = finished.stderr.last().expect("a last line");
        let end = format!("; process {} runs on", series.hold.pid());
        assert!(last.contains("FAILED: ") && last.ends_with(&end), "{case}: {last}");
    }
    series.scene.must_leave_nothing();
}

/// Whoever dumps the process has the kernel forget: another series, or a migration that has failed.
#[test]
fn an_image_is_whole_after_another_one_that_was_made_elsewhere() {
    let series = Series::start();
    fs::create_dir(series.scene.file("other")).expect("a directory");
    series.image(&["-R"]);
    let (first, _) = series.image(&["-R"]);
    let options = ["-R", "--increments", "other"];
    let other = series.scene.checkpoint(series.hold.pid(), &options, "cat > x").run(&[]);
    other.succeeded();
    assert_eq!(series.image(&["-R"]).1, None, "after one of another series");
    assert_ne!(series.image(&["-R"]).1, Some(first));
    let command = "head -c 3000000 | $RECEIVE";
    let migrate = series.scene.migrate(series.hold.pid(), &["--pre-copy"], command).run(&[]);
    assert_eq!(migrate.status.code(), Some(1));
    assert_eq!(series.image(&["-R"]).1, None, "after a migration that failed");
    // One by --stream has the kernel forget nothing.
    let (last, _) = series.image(&["-R"]);
    series.scene.checkpoint(series.hold.pid(), &["-R"], "cat > x").run(&[]).succeeded();
    assert_eq!(series.image(&["-R"]).1, Some(last));
}

#[test]
fn an_image_of_another_process_is_whole() {
    let mut series = Series::start();
    series.image(&["-R"]);
    let other = tempfile::TempDir::new().expect("a directory");
    let other = Hold::start(other.path(), 1, false);
    let mine = std::mem::replace(&mut series.hold, other);
    assert_eq!(series.image(&["-R"]).1, None);
    series.hold = mine;
    assert_eq!(series.image(&["-R"]).1, None);
}

#[test]
fn shards_of_an_increment_are_verified_and_merged() {
    let mut series = Series::start();
    series.image(&["-R"]);
    let options = ["-n", "3", "--verify", "cat $IMAGE_ID.$SHARD"];
    let finished = series.checkpoint(&options, &[], "cat > $IMAGE_ID.$SHARD; echo $PARENT_ID > p");
    finished.succeeded();
    let (id, parent) = ids(&finished);
    assert_eq!(Some(series.scene.read("p").trim().to_owned()), parent);
    let last = finished.stderr.last().expect("a last line");
    let expected = format!("; an increment of {}; frozen for ", parent.expect("a parent"));
    assert!(last.contains(&expected), "{last}");
    series.hold.must_be_gone();
    let merge = format!("shard-merge {id}.0 {id}.1 {id}.2 2>merged");
    let command = format!("image-combine $(cat chain) <({merge})");
    series.scene.restore(&[], &command).run(&[]).succeeded();
    series.hold.must_run();
    series.hold.kill();
}

#[test]
fn a_command_gets_no_parent_of_an_outer_run() {
    let series = Series::start();
    let command = r#"cat > x; [ -z "$PARENT_ID" ]"#;
    series.checkpoint(&["-R"], &[("PARENT_ID", "outer")], command).succeeded();
}

/// By SIGKILL, while the image is on its way.
#[test]
fn a_process_of_ours_that_is_killed_loses_nothing() {
    for which in 0..2 {
        let series = Series::start();
        series.image(&["-R"]);
        let options = ["--increments", "series"];
        let command = "head -c 1000000; touch stalled; sleep 1000";
        let checkpoint = series.scene.checkpoint(series.hold.pid(), &options, command).start();
        series.scene.wait_for_file("stalled");
        let ours = series.scene.processes_named("criu-checkpoint");
        kill(Pid::from_raw(ours[which].pid), Signal::SIGKILL).expect("kill it");
        assert!(!checkpoint.finish().status.success());
        assert_eq!(series.hold.life(), Life::Runs(series.hold.pid()), "{which}");
        series.scene.must_leave_nothing();
        assert_eq!(series.image(&["-R"]).1, None, "{which}");
    }
}

#[test]
fn two_checkpoints_of_one_series_are_not_made_at_once() {
    let series = Series::start();
    let command = "touch begun; while [ ! -e go ]; do sleep 0.01; done; cat > x";
    let options = ["-R", "--increments", "series"];
    let first = series.scene.checkpoint(series.hold.pid(), &options, command).start();
    series.scene.wait_for_file("begun");
    let second = series.checkpoint(&["-R"], &[], "cat > y");
    assert_eq!(second.status.code(), Some(1));
    let last = second.stderr.last().expect("a last line");
    assert!(last.contains(": another checkpoint is making an increment of it; "), "{last}");
    // Nor of two processes.
    let other = tempfile::TempDir::new().expect("a directory");
    let other = Hold::start(other.path(), 1, false);
    let third = series.scene.checkpoint(other.pid(), &options, "cat > y").run(&[]);
    assert_eq!(third.status.code(), Some(1));
    let last = third.stderr.last().expect("a last line");
    assert!(last.contains("series: another checkpoint is making an image there; "), "{last}");
    fs::write(series.scene.file("go"), "").expect("a file");
    first.finish().succeeded();
    series.scene.must_leave_nothing();
}

#[test]
fn what_cannot_be_is_wrong_usage() {
    let series = Series::start();
    let finished = series.checkpoint(&["-R"], &[("STAND_IN_TRACKS_NOT", "1")], STORE);
    finished.refused(2, "a kernel that cannot tell");
    let said = &finished.stderr[0];
    assert!(said.contains("--increments: this kernel does not tell which pages have changed"));
    let finished = series.checkpoint(&["-R", "--fs", "chain"], &[], STORE);
    finished.refused(2, "--fs");
    let options = ["-R", "--increments", "none"];
    let finished = series.scene.checkpoint(series.hold.pid(), &options, STORE).run(&[]);
    finished.refused(1, "no directory");
    assert!(finished.stderr[0].ends_with("none: not a directory"), "{:?}", finished.stderr);
    assert_eq!(series.scene.read("steps"), "", "CRIU was started");
}
