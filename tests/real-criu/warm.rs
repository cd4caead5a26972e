//! `criu-run --lazy`: a program goes on before its memory is there, and no image is made of it
//! before that.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, PATIENCE, programs, skip, wait_for};
use crate::pipeline::Pipeline;
use crate::storm::Storm;

/// As much memory as takes some tenths of a second to come.
const MEGABYTES: usize = 300;

/// The program may have no descriptor that connects it with others.
const CLOSE: &str = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                     [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done";

/// Starts a storm under `criu-run`, or restores it.
fn run(bench: &Bench, options: &str) -> Pipeline {
    let criu = bench.criu.program().display();
    let words = Storm::words(bench, 2, MEGABYTES / 2).join(" ");
    let script = format!(
        "{CLOSE}; export CRIU={criu}; \
         exec criu-run --image job.img --json --network-lock skip {options} -- python3 {words}"
    );
    Pipeline::start(bench, "run", &script)
}

/// A storm that was checkpointed into `job.img`. `None` where there is no Python.
fn checkpointed(bench: &Bench, name: &str) -> Option<Storm> {
    if !Command::new("python3").arg("-V").output().is_ok_and(|told| told.status.success()) {
        return skip(name, "no python3 here to change memory");
    }
    let mut pipeline = run(bench, "");
    let mut storm = Storm::of(bench);
    storm.must_go_on();
    terminate(&pipeline);
    assert_eq!(pipeline.status(), 75, "{}", pipeline.messages());
    storm.must_be_gone();
    Some(storm)
}

fn terminate(pipeline: &Pipeline) {
    kill(pipeline.pid(), Signal::SIGTERM).expect("send a signal");
}

/// The lines of JSON that tell of this event.
fn events(pipeline: &Pipeline, name: &str) -> Vec<serde_json::Value> {
    let messages = pipeline.messages();
    let lines = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &serde_json::Value| line["event"] == name).collect()
}

fn wait_for_event(pipeline: &Pipeline, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while events(pipeline, name).is_empty() {
        assert!(Instant::now() < deadline, "no {name}: {}", pipeline.messages());
        sleep(Duration::from_micros(500));
    }
}

/// When this event was told first, in milliseconds.
fn first_of(pipeline: &Pipeline, name: &str) -> u64 {
    let events = events(pipeline, name);
    let time = events.first().and_then(|event| event["uptime_millis"].as_u64());
    time.unwrap_or_else(|| panic!("no {name}: {}", pipeline.messages()))
}

/// The `image-serve` below a process.
fn server_below(pid: Pid) -> Option<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let children = list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number")));
    let is_server = |pid: &Pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "image-serve\n")
    };
    children.into_iter().find_map(|pid| if is_server(&pid) { Some(pid) } else { server_below(pid) })
}

/// Restores the storm, and stops who brings its memory before all of it is there.
fn stalled(bench: &Bench, storm: &mut Storm, options: &str) -> (Pipeline, Pid) {
    for _ in 0..10 {
        let pipeline = run(bench, &format!("--lazy {options}"));
        wait_for_event(&pipeline, "filling");
        if let Some(server) = server_below(pipeline.pid()) {
            kill(server, Signal::SIGSTOP).expect("stop image-serve");
            // What it has said is heard.
            sleep(Duration::from_millis(100));
            if events(&pipeline, "filled").is_empty() && events(&pipeline, "freezing").is_empty() {
                return (pipeline, server);
            }
            kill(server, Signal::SIGCONT).expect("let image-serve go on");
        }
        drop(pipeline);
        storm.kill();
    }
    panic!("memory has always come before image-serve could be stopped");
}

/// The image is whole: the program goes on from it with all of its memory. Then it is ended.
fn goes_on_from_the_image(bench: &Bench, storm: &mut Storm) {
    let pipeline = run(bench, "--lazy");
    wait_for_event(&pipeline, "filled");
    storm.must_go_on();
    drop(pipeline);
    storm.kill();
}

#[test]
fn a_checkpoint_comes_when_all_memory_is_there() {
    let name = "a_checkpoint_comes_when_all_memory_is_there";
    let Some(bench) = Bench::set_up("warm_checkpoint") else { return };
    let Some(mut storm) = checkpointed(&bench, name) else { return };
    for seed in 0..6 {
        let mut pipeline = run(&bench, "--lazy");
        wait_for_event(&pipeline, "restored");
        sleep(Duration::from_millis(Random::new(seed).below(100) as u64));
        terminate(&pipeline);
        assert_eq!(pipeline.status(), 75, "SEED={seed}: {}", pipeline.messages());
        let [filled, freezing] = ["filled", "freezing"].map(|it| first_of(&pipeline, it));
        assert!(filled <= freezing, "SEED={seed}: {}", pipeline.messages());
        storm.must_be_gone();
        storm.operations();
    }
    goes_on_from_the_image(&bench, &mut storm);
}

#[test]
fn asked_to_go_at_any_moment_of_a_restore_it_goes_on_from_a_whole_image() {
    let name = "asked_to_go_at_any_moment_of_a_restore_it_goes_on_from_a_whole_image";
    let Some(bench) = Bench::set_up("warm_asked") else { return };
    let Some(mut storm) = checkpointed(&bench, name) else { return };
    for seed in 0..6 {
        let mut pipeline = run(&bench, "--lazy");
        sleep(Duration::from_millis(30 + Random::new(seed).below(700) as u64));
        terminate(&pipeline);
        assert_eq!(pipeline.status(), 75, "SEED={seed}: {}", pipeline.messages());
        storm.must_be_gone();
        storm.operations();
    }
    goes_on_from_the_image(&bench, &mut storm);
}

#[test]
fn a_deadline_and_a_snapshot_count_the_time_that_memory_takes() {
    let name = "a_deadline_and_a_snapshot_count_the_time_that_memory_takes";
    let Some(bench) = Bench::set_up("warm_deadline") else { return };
    let Some(mut storm) = checkpointed(&bench, name) else { return };
    let options = "--deadline 1 --on-failure ignore --every 1";
    let (mut pipeline, server) = stalled(&bench, &mut storm, options);
    terminate(&pipeline);
    wait_for_event(&pipeline, "failed");
    let cause = events(&pipeline, "failed").pop().expect("it was told")["cause"].to_string();
    assert!(cause.contains("waited for the program's memory"), "{cause}");
    assert!(events(&pipeline, "freezing").is_empty(), "{}", pipeline.messages());
    // A new image in its place is none of its business.
    fs::copy(bench.scratch().join("job.img"), bench.scratch().join("other")).expect("copy");
    fs::rename(bench.scratch().join("other"), bench.scratch().join("job.img")).expect("rename");
    kill(server, Signal::SIGCONT).expect("let image-serve go on");
    wait_for_event(&pipeline, "snapshot");
    let [filled, freezing] = ["filled", "freezing"].map(|it| first_of(&pipeline, it));
    assert!(filled <= freezing, "{}", pipeline.messages());
    storm.must_go_on();
    storm.kill();
    assert_ne!(pipeline.status(), 0, "{}", pipeline.messages());
    goes_on_from_the_image(&bench, &mut storm);
}

#[test]
fn a_program_whose_memory_cannot_come_is_killed_and_criu_run_says_so() {
    let name = "a_program_whose_memory_cannot_come_is_killed_and_criu_run_says_so";
    let Some(bench) = Bench::set_up("warm_cut") else { return };
    let Some(mut storm) = checkpointed(&bench, name) else { return };
    let (mut pipeline, server) = stalled(&bench, &mut storm, "");
    let image = fs::File::options().write(true).open(bench.scratch().join("job.img"));
    image.and_then(|image| image.set_len(1 << 20)).expect("cut the image");
    kill(server, Signal::SIGCONT).expect("let image-serve go on");
    assert_eq!(pipeline.status(), 125, "{}", pipeline.messages());
    let messages = pipeline.messages();
    assert!(
        messages.contains("the program was killed, as its memory could not come"),
        "{messages}"
    );
    assert!(messages.contains("the image was changed while it was in use"), "{messages}");
    storm.must_be_gone();
    storm.operations();
}

#[test]
fn a_tree_that_lacks_memory_is_not_dumped() {
    let name = "a_tree_that_lacks_memory_is_not_dumped";
    let Some(bench) = Bench::set_up("warm_by_hand") else { return };
    let Some(mut storm) = checkpointed(&bench, name) else { return };
    let (pipeline, server) = stalled(&bench, &mut storm, "");
    let root = events(&pipeline, "restored").pop().expect("it was told")["process"].to_string();
    let criu = bench.criu.program().display();
    let checkpoint = format!(
        "CRIU={criu} criu-checkpoint -t {root} --ghost-limit 64M --network-lock skip \
         -R --time-limit 1 -- 'cat > snapshot'"
    );
    let mut refused = Pipeline::start(&bench, "refused", &checkpoint);
    assert_eq!(refused.status(), 1, "{}", refused.messages());
    let messages = refused.messages();
    assert!(messages.contains("waited for the memory of process"), "{messages}");
    let checkpoint = checkpoint.replace("--time-limit 1", "");
    let mut waits = Pipeline::start(&bench, "waits", &checkpoint);
    wait_for("the socket", || {
        let image = bench.scratch().join("snapshot");
        image.exists().then_some(())
    });
    kill(server, Signal::SIGCONT).expect("let image-serve go on");
    waits.must_succeed();
    drop(pipeline);
    storm.kill();
    fs::rename(bench.scratch().join("snapshot"), bench.scratch().join("job.img")).expect("rename");
    goes_on_from_the_image(&bench, &mut storm);
}

#[test]
fn copies_that_are_checkpointed_at_once_leave_a_whole_image() {
    let Some(bench) = Bench::set_up("warm_copies") else { return };
    let criu = bench.criu.program().display();
    // It has some memory, and ends when it is told to.
    let count = "x=$(head -c 3000000 /dev/zero | tr \"\\0\" x); n=0; \
                 until [ -e stop ]; do n=$((n + 1)); echo $n >/dev/null; sleep 0.02; done; \
                 exit $((${#x} == 3000000 ? 7 : 8))";
    let start = |name: &str, options: &str| {
        let script = format!(
            "{CLOSE}; export CRIU={criu}; exec criu-run --image job.img --json \
             --network-lock skip {options} -- bash -c '{count}'"
        );
        Pipeline::start(&bench, name, &script)
    };
    let mut first = start("first", "");
    wait_for_event(&first, "started");
    terminate(&first);
    assert_eq!(first.status(), 75, "{}", first.messages());
    for round in 0..3 {
        let names = ["one", "two", "three"].map(|name| format!("{name}-{round}"));
        let mut copies = names.map(|name| start(&name, "--lazy"));
        copies.iter().for_each(|copy| wait_for_event(copy, "filled"));
        copies.iter().for_each(terminate);
        let checkpointed = copies.iter_mut().filter_map(|copy| {
            let (status, messages) = (copy.status(), copy.messages());
            // Where two look at processes of one number in one mount namespace in the same moment,
            // CRIU 4.2.1 fails for one of them, which the program's end by the signal then tells.
            let collides = messages.contains("Can't create a directory (-17)");
            assert_eq!(status, if collides { 143 } else { 75 }, "{messages}");
            (status == 75).then_some(())
        });
        assert_ne!(checkpointed.count(), 0, "none in round {round}");
    }
    let left = fs::read_dir(bench.scratch()).expect("list the directory").flatten();
    let left: Vec<_> =
        left.filter(|it| it.file_name().to_string_lossy().contains(".new")).collect();
    assert!(left.is_empty(), "{left:?}");
    let mut last = start("last", "--lazy");
    wait_for_event(&last, "filled");
    fs::write(bench.scratch().join("stop"), "").expect("write a file");
    assert_eq!(last.status(), 7, "{}", last.messages());
}

#[test]
fn the_recipe_starts_copies_and_tells_what_they_cost() {
    let name = "the_recipe_starts_copies_and_tells_what_they_cost";
    let Some(bench) = Bench::set_up("warm_recipe") else { return };
    let recipe = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contrib/warm-starts");
    let path = std::env::var("PATH").unwrap_or_default();
    if !Command::new("python3").arg("-V").output().is_ok_and(|told| told.status.success()) {
        skip::<()>(name, "no python3 here that starts slowly");
        return;
    }
    let told = Command::new(recipe)
        .arg("4")
        .env("PATH", format!("{}:{path}", programs().display()))
        .env("CRIU", bench.criu.program())
        .env("TMPDIR", bench.scratch())
        .output()
        .expect("run the recipe");
    let said = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{said}{}", String::from_utf8_lossy(&told.stderr));
    println!("{said}");
    for line in ["the program itself: ", "copy 1: ", "copy 2: ", "copies 3 to 4, all at once: "] {
        assert!(said.contains(line), "{said}");
    }
    let left = fs::read_dir(bench.scratch()).expect("list the directory").flatten();
    let left: Vec<_> = left.map(|it| it.file_name()).filter(|it| it != "tcp").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
