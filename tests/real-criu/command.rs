//! CRIU as the command of a filter: a pipeline is one line, and CRIU rolls back whenever the filter
//! ends early.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, wait_for};
use crate::pipeline::Pipeline;
use crate::victim::Victim;

/// What follows `-D dump -- `.
fn dump(bench: &Bench, victim: &Victim) -> String {
    let criu = bench.criu.program().display();
    let pid = victim.pid();
    format!("{criu} dump --stream -D dump -t {pid} {OPTIONS} -o dump.log")
}

fn restore(bench: &Bench) -> String {
    let criu = bench.criu.program().display();
    format!("{criu} restore --stream -D restore --restore-detached {OPTIONS} -o restore.log")
}

const OPTIONS: &str = "-v4 --network-lock skip --tcp-established";

fn is_empty_of_sockets(directory: &Path) -> bool {
    let names = fs::read_dir(directory).expect("the directory");
    names.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".sock"))
}

/// The tree runs, and CRIU has said that it has given up by itself: it was not killed.
fn must_have_rolled_back(bench: &Bench, victim: &Victim) {
    let log = wait_for("CRIU's last words", || {
        let log = fs::read(bench.scratch().join("dump/dump.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.contains("Dumping FAILED").then_some(log)
    });
    assert!(log.contains("Unfreezing tasks into 1"), "not rolled back:\n{log}");
    victim.must_go_on(&victim.statuses());
    let directory = bench.scratch().join("dump");
    wait_for("the socket is gone", || is_empty_of_sockets(&directory).then_some(()));
}

#[test]
fn a_tree_goes_on_after_one_line_each_way() {
    let Some(bench) = Bench::set_up("one_line_each_way") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    bench.directory("dump");
    let script = format!("criu-sock-capture -D dump -- {} | cat > image", dump(&bench, &victim));
    Pipeline::start(&bench, "dump", &script).must_succeed();
    let dumped = victim.reap();
    let images = bench.directory("restore");
    let script = format!("cat image | image-serve -D restore -- {}", restore(&bench));
    Pipeline::start(&bench, "restore", &script).must_succeed();
    victim.must_go_on(&dumped);
    assert!(is_empty_of_sockets(&images));
}

/// Neither the environment's `CRIU` nor a `-D` is needed in a directory of one's own.
#[test]
fn both_use_the_current_directory_unless_told() {
    let Some(bench) = Bench::set_up("current_directory") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
    bench.directory("dump");
    bench.directory("restore");
    let [dump, restore] = [dump(&bench, &victim), restore(&bench)];
    let script =
        format!("cd dump && criu-sock-capture -- {} > ../image", dump.replace("-D dump", ""));
    Pipeline::start(&bench, "dump", &script).must_succeed();
    let dumped = victim.reap();
    let script =
        format!("cd restore && image-serve -- {} < ../image", restore.replace("-D restore", ""));
    Pipeline::start(&bench, "restore", &script).must_succeed();
    victim.must_go_on(&dumped);
}

#[test]
fn a_reader_that_ends_early_lets_the_tree_go_on() {
    let Some(bench) = Bench::set_up("a_reader_that_ends_early") else {
        return;
    };
    let victim = Victim::start(&bench, &[]);
    bench.directory("dump");
    let script = format!(
        "criu-sock-capture -D dump -- {} | head -c 33554432 > image",
        dump(&bench, &victim)
    );
    let mut pipeline = Pipeline::start(&bench, "dump", &script);
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    // It has waited for CRIU.
    assert_eq!(pipeline.last_message(), "criu-sock-capture: stdout: Broken pipe");
    must_have_rolled_back(&bench, &victim);
}

/// The filter gets SIGTERM alone while CRIU sends memory.
#[test]
fn a_signal_to_the_filter_lets_the_tree_go_on() {
    let Some(bench) = Bench::set_up("a_signal_to_the_filter") else {
        return;
    };
    // A reader that is slow, and one that has stopped.
    let readers =
        ["pv -q -L 8m", "{ head -c 33554432; until [ -e go ]; do sleep 0.1; done; cat; }"];
    for (number, reader) in readers.into_iter().enumerate() {
        let victim = Victim::start(&bench, &[]);
        bench.directory("dump");
        let script = format!(
            "sh -c 'echo $$ > pid; exec criu-sock-capture -D dump -p 3 3>progress -- {}' | {reader} > image",
            dump(&bench, &victim)
        );
        let mut pipeline = Pipeline::start(&bench, "dump", &script);
        wait_for("some megabytes of image", || {
            let image = fs::metadata(bench.scratch().join("image")).ok()?;
            (image.len() > 4 << 20).then_some(())
        });
        let pid = fs::read_to_string(bench.scratch().join("pid")).expect("its number");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number"));
        kill(pid, Signal::SIGTERM).expect("the filter runs");
        must_have_rolled_back(&bench, &victim);
        fs::write(bench.scratch().join("go"), "").expect("let the reader go on");
        assert_eq!(pipeline.status(), 128 + 15, "{number}: {}", pipeline.messages());
        for directory in ["dump", "victim"] {
            fs::remove_dir_all(bench.scratch().join(directory)).expect("remove it");
        }
        fs::remove_file(bench.scratch().join("image")).expect("remove it");
    }
}

#[test]
fn a_restore_whose_criu_fails_leaves_nothing_behind() {
    let Some(bench) = Bench::set_up("a_restore_whose_criu_fails") else {
        return;
    };
    let victim = Victim::start(&bench, &["--megabytes", "12"]);
    bench.directory("dump");
    let images = bench.directory("restore");
    let dump = dump(&bench, &victim);
    let script = format!("criu-sock-capture -D dump -- {dump} --leave-running > image");
    Pipeline::start(&bench, "dump", &script).must_succeed();
    // Its process ids are taken: by itself.
    let script = format!("cat image | image-serve -D restore -- {}", restore(&bench));
    let mut pipeline = Pipeline::start(&bench, "restore", &script);
    assert_eq!(pipeline.status(), 1, "{}", pipeline.messages());
    let message = pipeline.last_message();
    assert!(message.starts_with("image-serve: command ("), "{message}");
    assert!(message.ends_with("): failed with exit status 1"), "{message}");
    assert!(is_empty_of_sockets(&images));
    victim.must_go_on(&victim.statuses());
}
