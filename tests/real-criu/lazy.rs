//! `image-serve --lazy`: the processes run before their memory is there, and
//! never read a wrong byte, whatever they do to it and whoever dies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, program, wait_for};
use crate::criu::{Image, Run};
use crate::pipeline::Pipeline;
use crate::storm::{DUMP, Herd, Storm};
use crate::streams::dump_into;
use crate::victim::Victim;

const LAZY: &str = "image-serve --lazy -v -D restore -p 3 3>restore.progress < image";

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
    // A line when it runs, perhaps, and one when all memory is there.
    let last = told.lines().last().unwrap_or_default();
    let told: serde_json::Value = serde_json::from_str(last).expect("JSON");
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
    storms("processes_change_their_memory", 1000);
}

#[test]
#[ignore = "takes minutes: make check-load"]
fn processes_change_their_memory_ten_thousand_times_while_it_comes() {
    storms("ten_thousand_changes", 10_000);
}

/// Restores trees of one to four processes until they have done so many operations while their
/// memory came, each time others. `SEED=N` begins with others.
fn storms(name: &str, operations: u64) {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for processes in 1..=4 {
        let Some(bench) = Bench::set_up(&format!("{name}_{processes}")) else {
            return;
        };
        let Some(mut storm) = Storm::start(&bench, name, processes, 160) else {
            return;
        };
        storm.dump(&bench);
        let dumped = storm.note();
        let (mut done, mut seed) = (0, first);
        while done < operations / 4 {
            storm.set_back(&dumped);
            storm.reseed(seed);
            let before = storm.operations();
            begin(&bench, &format!("{LAZY} # SEED={seed}")).must_succeed();
            done += storm.operations() - before;
            storm.must_go_on();
            storm.kill();
            seed += 1;
            assert!(seed - first < operations, "{done} operations in {seed} restores");
        }
        println!("{name}: {processes} processes: {done} operations, SEED={first} to {}", seed - 1);
    }
}

#[test]
fn every_page_is_found_as_it_was_left_in_whatever_order_it_is_touched() {
    const KINDS: [&str; 4] =
        ["sequential-reader", "random-reader", "sequential-writer", "random-writer"];
    const MEGABYTES: u64 = 64;

    let Some(bench) = Bench::set_up("lazy_walk") else {
        return;
    };
    let directory = bench.directory("walk");
    let mut victim = Command::new(program("victim"));
    victim.arg("walk").arg(&directory).arg(MEGABYTES.to_string());
    let mut herd = Herd::start(victim, &directory).expect("start the victim");
    let seen = |kind: &str| -> u64 {
        let text = fs::read_to_string(directory.join(kind)).unwrap_or_default();
        assert!(!text.contains("wrong"), "{kind}: {text}");
        text.trim().parse().unwrap_or(0)
    };
    let pages = MEGABYTES << 20 >> 12;
    let all_have_seen = |least: &[u64; 4], more: u64| {
        wait_for("every page to be seen", || {
            KINDS.iter().zip(least).all(|(kind, least)| seen(kind) > least + more).then_some(())
        });
    };
    all_have_seen(&[0; 4], pages / 3);
    herd.dump(&bench);
    let dumped = KINDS.map(seen);
    for _ in 0..3 {
        let mut pipeline = begin(&bench, LAZY);
        // From the first page that is touched on, and until the last one has come.
        all_have_seen(&dumped, pages);
        pipeline.must_succeed();
        all_have_seen(&dumped, 2 * pages);
        herd.kill();
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
    deaths("a_tree_whose_memory_cannot_come", 1);
}

#[test]
#[ignore = "takes minutes: make check-load"]
fn a_tree_is_gone_or_whole_whoever_dies_in_60_cases() {
    deaths("whoever_dies", 10);
}

/// So many rounds, in each of which everybody dies once.
fn deaths(name: &str, rounds: u64) {
    let Some(bench) = Bench::set_up(&format!("lazy_{name}")) else {
        return;
    };
    let Some(mut storm) = Storm::start(&bench, name, 2, 160) else {
        return;
    };
    storm.dump(&bench);
    let deaths = [Death::Server, Death::Keeper, Death::Terminated, Death::Cut, Death::Rewritten];
    for round in 0..rounds {
        for (turn, death) in deaths.into_iter().enumerate() {
            dies(&bench, &mut storm, death, round * deaths.len() as u64 + turn as u64);
        }
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
        // It was about to end. Memory that had not come would be found wrong.
        (Death::Server, 137) | (Death::Terminated, 143)
            if !pipeline.messages().contains("kills ") =>
        {
            let before = storm.operations();
            wait_for("more operations", || (storm.operations() > before + 200).then_some(()));
        }
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
    let Some(mut storm) = Storm::start_by(&bench, name, &unshare, 2, 160) else {
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
