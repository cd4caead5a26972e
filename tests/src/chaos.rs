//! Chaos: a checkpoint or a restore, one thing that goes wrong at a random moment, and then the
//! question whether the process was lost.
//!
//! All of a case follows from its seed, but for what the machine adds: which system call it is
//! that is interrupted. `SEED=N` runs one case again, and `CASES=N` so many.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::criu::pipe;
use crate::hold::{Hold, Life};
use crate::pipeline::{Filter, Running, collect_from};
use crate::random::Random;
use crate::scene::{Process, Scene};

/// What the cases run with.
#[derive(Clone, Debug)]
pub struct World {
    /// The CRIU.
    pub criu: PathBuf,
    /// Options for it.
    pub options: Vec<String>,
    /// Whether it is the stand-in, whose steps can be seen and made to fail.
    pub is_stand_in: bool,
    /// How many cases run at a time.
    pub at_once: usize,
    /// What the process holds.
    pub megabytes: usize,
}

/// Runs so many cases, and prints how they ended. Fails if one process was lost, or somebody was
/// told something that is not so.
pub fn run(world: &World, cases: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CASES").unwrap_or(cases),
    };
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let counts: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let lost: Mutex<Vec<String>> = Mutex::default();
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..world.at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let since = Instant::now();
                    let (case, outcome) = Case::run(world, seed);
                    let time = since.elapsed().as_secs_f64();
                    let end = match &outcome {
                        Ok(end) => end.to_string(),
                        Err(lost) => format!("LOST: {lost}"),
                    };
                    println!("SEED={seed}: {case}: {end}; {time:.1} s");
                    match outcome {
                        Ok(end) => *locked(&counts).entry(end.to_string()).or_default() += 1,
                        Err(fault) => locked(&lost).push(format!("SEED={seed}: {case}: {fault}")),
                    }
                }
            });
        }
    });
    let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    let cases = seeds.end - seeds.start;
    println!("chaos: {cases} cases in {:.0} s, {} lost", began.elapsed().as_secs_f64(), lost.len());
    for (end, count) in locked(&counts).iter() {
        println!("chaos: {count:5}  {end}");
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is done, and what goes wrong meanwhile.
#[derive(Debug)]
struct Case {
    act: Act,
    shards: usize,
    moment: Moment,
    fault: Fault,
    /// Who was hit, when it was a process.
    hit: String,
    /// Whether that was everybody who would clear away, as the only one that there was by then.
    all_ours_hit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Checkpoint { leave_running: bool, verify: bool },
    Restore { way: Way },
}

/// How a restore has the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stream,
    Directory,
    /// Memory comes from the file when it is touched.
    Lazy,
}

/// When it happens.
#[derive(Clone, Debug)]
enum Moment {
    /// So long after the start.
    After(Duration),
    /// When the stand-in has reached a step, and waits there for so long; and a little later.
    At { step: &'static str, pause: Duration, later: Duration },
    /// When the process runs and its memory is still to come; and a little later.
    Runs { later: Duration },
}

/// What happens.
#[derive(Clone, Debug)]
enum Fault {
    /// A signal to one process or to all.
    Signal(Signal, Whom),
    /// One process, or all, are stopped for a while.
    Stop(Duration, Whom),
    /// COMMAND fails: at its start, after so many bytes, or when it is done.
    Command(Failure),
    /// Nobody reads the messages any more.
    Deaf,
    /// No file may become larger than so many KiB.
    FullDisk(usize),
    /// CRIU does something by itself.
    Criu(&'static str, &'static str),
}

#[derive(Clone, Copy, Debug)]
enum Whom {
    /// One of them, by its number in the order of their names.
    One(usize),
    /// All, as `systemctl stop` or the end of a container does it.
    All,
    /// Those of the command itself, and none that it has started.
    Ours,
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    Start,
    After(usize),
    EndsEarly(usize),
    ClosesEarly(usize),
    End,
}

const DUMP_STEPS: [&str; 9] =
    ["start", "connected", "frozen", "pages", "inventory", "asking", "answered", "gone", "end"];
const RESTORE_STEPS: [&str; 8] =
    ["start", "connected", "pages", "made", "asking", "answered", "runs", "end"];

/// How it ended, when nothing was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    act: &'static str,
    told: &'static str,
    runs: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let End { act, told, runs } = self;
        write!(f, "{act} {told}: {}", if *runs { "it runs" } else { "its image restores" })
    }
}

/// Why a process counts as lost, or what was told that is not so.
type Lost = String;

impl Case {
    fn run(world: &World, seed: u64) -> (Case, Result<End, Lost>) {
        let mut random = Random::new(seed);
        let mut case = Case::of(world, &mut random);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match case.act {
            Act::Checkpoint { .. } => case.checkpoint(world),
            Act::Restore { .. } => case.restore(world),
        }));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.unwrap_or_else(|| "the test itself failed".into()))
        });
        (case, outcome)
    }

    fn of(world: &World, random: &mut Random) -> Case {
        let act = match random.below(5) {
            0 => Act::Checkpoint { leave_running: true, verify: random.one_in(2) },
            1 | 2 => Act::Checkpoint { leave_running: false, verify: random.one_in(3) },
            3 => Act::Restore { way: Way::Directory },
            // The stand-in restores no memory.
            _ if !world.is_stand_in && random.one_in(2) => Act::Restore { way: Way::Lazy },
            _ => Act::Restore { way: Way::Stream },
        };
        let is_lazy = act == Act::Restore { way: Way::Lazy };
        let shards = if is_lazy { 1 } else { random.pick(&[1, 1, 2, 3]) };
        let steps: &[&'static str] = match act {
            Act::Checkpoint { .. } => &DUMP_STEPS,
            Act::Restore { .. } => &RESTORE_STEPS,
        };
        let moment = match (world.is_stand_in || is_lazy) && random.one_in(2) {
            true if is_lazy => Moment::Runs {
                later: Duration::from_micros(random.magnitude_below(100_000) as u64),
            },
            true => Moment::At {
                step: random.pick(steps),
                pause: Duration::from_millis(random.pick(&[0, 20, 150])),
                later: Duration::from_micros(random.magnitude_below(50_000) as u64),
            },
            false => {
                let micros = if world.is_stand_in { 200_000 } else { 900_000 };
                Moment::After(Duration::from_micros(random.below(micros) as u64))
            }
        };
        let whom = match random.below(8) {
            // Who guards the memory and who brings it cannot be spared both.
            0 | 1 if !is_lazy => Whom::All,
            2 => Whom::Ours,
            _ => Whom::One(random.below(1000)),
        };
        let bytes = world.megabytes << 20;
        let fault = match random.below(12) {
            0 | 1 => Fault::Signal(Signal::SIGTERM, whom),
            2..=4 => Fault::Signal(Signal::SIGKILL, whom),
            5 => Fault::Signal(random.pick(&[Signal::SIGINT, Signal::SIGHUP]), whom),
            6 | 7 => Fault::Stop(Duration::from_millis(20 + random.below(400) as u64), whom),
            8 => Fault::Command(match random.below(5) {
                0 => Failure::Start,
                1 => Failure::After(random.below(bytes)),
                2 => Failure::EndsEarly(random.below(bytes)),
                3 => Failure::ClosesEarly(random.below(bytes)),
                _ => Failure::End,
            }),
            9 => Fault::Deaf,
            10 => Fault::FullDisk(random.magnitude_below((bytes >> 10) + 100)),
            _ if world.is_stand_in => {
                let step = random.pick(steps);
                // No CRIU succeeds without having done what it was allowed to.
                let allowed =
                    steps.iter().skip_while(|it| **it != "answered").any(|it| *it == step);
                let ways: &[_] = if allowed { &["fail", "die"] } else { &["fail", "die", "end"] };
                Fault::Criu(step, random.pick(ways))
            }
            _ => Fault::Signal(Signal::SIGKILL, whom),
        };
        Case { act, shards, moment, fault, hit: String::new(), all_ours_hit: false }
    }

    // --- The acts ---------------------------------------------------------------------------

    fn checkpoint(&mut self, world: &World) -> Result<End, Lost> {
        let Act::Checkpoint { leave_running, verify } = self.act else { unreachable!() };
        let scene = Scene::with(world.criu.clone());
        let mut hold = Hold::start(scene.path(), world.megabytes, !world.is_stand_in);
        let mut filter = self.start_of(&scene, "criu-checkpoint");
        filter = filter.args(["-t", &hold.pid().to_string()]).args(&world.options);
        if leave_running {
            filter = filter.arg("-R");
        }
        if verify {
            filter = filter.args(["--verify", "cat image$SHARD"]);
        }
        let store = self.command("cat > image$SHARD");
        let told = self.carry_out(&scene, filter.args(["--", &store]))?;
        let life = hold.life();
        self.must_leave_nothing(&scene, &told)?;
        let runs = match life {
            Life::Runs(_) => true,
            Life::Gone => false,
            Life::Broken(how) => return Err(format!("{how}; {told}")),
        };
        self.must_be_true(&told, &life)?;
        if told.succeeded() && runs != leave_running {
            return Err(format!("status 0, and {life:?}; {told}"));
        }
        // Where only a CRIU that was killed may leave its sockets as they are.
        if runs && !self.kills_criu() {
            hold.answers().map_err(|fault| format!("{fault}; {told}"))?;
        }
        if !runs || told.succeeded() {
            let peer = !runs;
            hold.kill();
            restores(world, &scene, &mut hold, self.shards, peer)
                .map_err(|fault| format!("{fault}; {told}"))?;
        }
        Ok(End { act: "checkpoint", told: told.in_short(), runs })
    }

    fn restore(&mut self, world: &World) -> Result<End, Lost> {
        let Act::Restore { way } = self.act else { unreachable!() };
        let scene = Scene::with(world.criu.clone());
        // So much that it takes a while to come.
        let megabytes = world.megabytes * if way == Way::Lazy { 10 } else { 1 };
        let mut hold = Hold::start(scene.path(), megabytes, !world.is_stand_in);
        let shards = self.shards.to_string();
        let options: Vec<&str> =
            ["-n", &shards].into_iter().chain(world.options.iter().map(String::as_str)).collect();
        let first = scene.checkpoint(hold.pid(), &options, "cat > image$SHARD");
        first.start().finish().succeeded();
        hold.must_be_gone();
        let _ = std::fs::remove_file(scene.file("steps"));
        let mut filter = self.start_of(&scene, "criu-restore").args(&world.options);
        let read = self.command("cat image$SHARD");
        filter = match way {
            Way::Stream => filter.args(["--", &read]),
            Way::Directory => filter.args(["--directory", "--", &read]),
            Way::Lazy => {
                let lines = std::fs::File::create(scene.file("lines"));
                filter.args(["--json", "--lazy", "image"]).stdout(lines.expect("a file"))
            }
        };
        let told = self.carry_out(&scene, filter)?;
        self.must_leave_nothing(&scene, &told)?;
        let life = hold.life();
        let runs = match &life {
            Life::Runs(_) => true,
            Life::Gone => false,
            Life::Broken(how) => return Err(format!("{how}; {told}")),
        };
        self.must_be_true(&told, &life)?;
        if told.succeeded() && !runs {
            return Err(format!("status 0, and {life:?}; {told}"));
        }
        match runs {
            true => hold.answers().map_err(|fault| format!("{fault}; {told}"))?,
            false => restores(world, &scene, &mut hold, self.shards, !self.kills_criu())
                .map_err(|fault| format!("{fault}; {told}"))?,
        }
        Ok(End { act: "restore", told: told.in_short(), runs })
    }

    // --- The fault --------------------------------------------------------------------------

    /// The program, in an environment in which the fault will happen if it is one of those.
    fn start_of(&self, scene: &Scene, name: &str) -> Filter {
        let mut filter = match self.fault {
            Fault::FullDisk(kilobytes) => scene.run_after(&format!("ulimit -f {kilobytes}"), name),
            _ => scene.run(name),
        };
        if self.act != (Act::Restore { way: Way::Lazy }) {
            filter = filter.args(["-n", &self.shards.to_string()]);
        }
        if let Moment::At { step, pause, .. } = &self.moment {
            filter = filter.env("STAND_IN_PAUSE", format!("{step}:{}", pause.as_millis()));
        }
        if let Fault::Criu(step, what) = self.fault {
            filter = filter.env("STAND_IN_FAULT", format!("{step}:{what}"));
        }
        filter
    }

    /// COMMAND, which may fail.
    fn command(&self, command: &str) -> String {
        let stores = command.contains('>');
        match self.fault {
            Fault::Command(Failure::Start) => "exit 3 # $SHARD".into(),
            Fault::Command(Failure::After(bytes)) => format!("{}; exit 7", part(command, bytes)),
            Fault::Command(Failure::EndsEarly(bytes)) => part(command, bytes),
            Fault::Command(Failure::ClosesEarly(bytes)) => {
                let close = if stores { "exec <&-" } else { "exec >&-" };
                format!("{}; {close}; sleep 0.2", part(command, bytes))
            }
            Fault::Command(Failure::End) => format!("{command}; exit 22"),
            _ => command.into(),
        }
    }

    /// Runs the program, and has the fault happen.
    fn carry_out(&mut self, scene: &Scene, filter: Filter) -> Result<Told, Lost> {
        let (read, write) = pipe(None).map_err(|error| error.to_string())?;
        let since = Instant::now();
        let running = filter.stderr_to(write).start();
        let mut reader = Some(read);
        let mut messages = None;
        if !matches!(self.fault, Fault::Deaf) {
            messages = reader.take().map(collect_from);
        }
        self.wait_for_moment(scene, &running, since);
        match self.fault.clone() {
            Fault::Signal(signal, whom) => drop(self.signal(scene, &running, signal, whom)),
            Fault::Stop(time, whom) => {
                let stopped = self.signal(scene, &running, Signal::SIGSTOP, whom);
                sleep(time);
                for pid in stopped {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
            Fault::Deaf => drop(reader),
            _ => {}
        }
        let status = running.finish().status;
        // A process that was killed tells nothing.
        let front_killed = status.signal() == Some(Signal::SIGKILL as i32);
        let text = messages.map(|it| it.join().map_err(|_| "no messages")).transpose()?;
        let text = text.map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(Told { status, text: text.filter(|_| !front_killed) })
    }

    fn wait_for_moment(&self, scene: &Scene, running: &Running, since: Instant) {
        let until = match &self.moment {
            Moment::After(time) => since + *time,
            Moment::At { step, later, .. } => {
                let reached = || scene.read("steps").lines().any(|line| line == *step);
                while !reached() && running.is_running() {
                    sleep(Duration::from_micros(200));
                }
                Instant::now() + *later
            }
            Moment::Runs { later } => {
                while scene.read("lines").is_empty() && running.is_running() {
                    sleep(Duration::from_micros(200));
                }
                Instant::now() + *later
            }
        };
        sleep(until.saturating_duration_since(Instant::now()));
    }

    /// Sends the signal, and returns whom it has hit.
    fn signal(&mut self, scene: &Scene, running: &Running, signal: Signal, whom: Whom) -> Vec<i32> {
        let processes = scene.processes();
        let is_ours = |process: &&Process| {
            process.name.starts_with("criu-r") || process.name.starts_with("criu-checkpoint")
        };
        let hit: Vec<&Process> = match whom {
            Whom::All => processes.iter().collect(),
            Whom::Ours => processes.iter().filter(is_ours).collect(),
            Whom::One(number) => {
                processes.get(number % processes.len().max(1)).into_iter().collect()
            }
        };
        let role = |process: &&Process| match process.pid == running.pid().as_raw() {
            true => "front".to_owned(),
            false => process.name.clone(),
        };
        self.hit = hit.iter().map(role).collect::<Vec<_>>().join(" ");
        self.all_ours_hit = processes.iter().filter(is_ours).all(|it| hit.contains(&it));
        for process in &hit {
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
        hit.iter().map(|process| process.pid).collect()
    }

    /// Whether CRIU may have been killed where it stood.
    fn kills_criu(&self) -> bool {
        match self.fault {
            Fault::Signal(Signal::SIGKILL, _) => self.hit.split(' ').any(|it| it == "criu"),
            // Its log goes there.
            Fault::FullDisk(_) => true,
            Fault::Criu(_, what) => what != "fail",
            _ => false,
        }
    }

    /// Where all who would clear away were killed, a directory stays.
    fn must_leave_nothing(&self, scene: &Scene, told: &Told) -> Result<(), Lost> {
        let all_killed =
            self.all_ours_hit && matches!(self.fault, Fault::Signal(Signal::SIGKILL, _));
        match scene.left(!all_killed) {
            Some(left) => Err(format!("{left}; {told}")),
            None => Ok(()),
        }
    }

    // --- What was told ----------------------------------------------------------------------

    /// Whether what was told is so.
    fn must_be_true(&self, told: &Told, life: &Life) -> Result<(), Lost> {
        let lie = |what: &str| Err(format!("{what}: {life:?}; {told}"));
        if !told.succeeded() && told.status.code().is_some_and(|code| code != 1) {
            return lie("a strange status");
        }
        let Some(last) = told.last_line() else { return Ok(()) };
        let failed = last.contains(": FAILED: ");
        if failed == told.succeeded() {
            return lie("the last line does not say what the status does");
        }
        let runs = matches!(life, Life::Runs(_));
        let says = |words: &str| last.contains(words);
        // A process whose holder was killed knows less.
        if says("unless the image is safe") || says("unless CRIU was about to") {
            return Ok(());
        }
        let true_words = match (self.act, failed) {
            (Act::Checkpoint { .. }, _) if says("the tree was let go") => true,
            (Act::Checkpoint { .. }, _) => says(if runs { "runs on" } else { "is gone" }),
            (Act::Restore { .. }, false) => says("restored") && runs,
            (Act::Restore { way: Way::Lazy }, true) if says("; process ") => {
                says("and runs") == runs
            }
            (Act::Restore { .. }, true) => says("nothing is restored") != runs,
        };
        if true_words { Ok(()) } else { lie("the last line is not true") }
    }
}

/// So many bytes of what a command stores or reads.
fn part(command: &str, bytes: usize) -> String {
    command.replace("cat", &format!("head -c {bytes}"))
}

/// The image restores, and the process goes on from it; with `peer` its connection too.
fn restores(
    world: &World,
    scene: &Scene,
    hold: &mut Hold,
    shards: usize,
    peer: bool,
) -> Result<(), Lost> {
    hold.reap();
    let shards = shards.to_string();
    let options: Vec<&str> =
        ["-n", &shards].into_iter().chain(world.options.iter().map(String::as_str)).collect();
    let restored = scene.restore(&options, "cat image$SHARD").start().finish();
    if !restored.status.success() {
        return Err(format!("its image does not restore: {:?}", restored.stderr));
    }
    match hold.life() {
        Life::Runs(_) if peer => hold.answers(),
        Life::Runs(_) => Ok(()),
        other => Err(format!("its image was restored, and {other:?}")),
    }
}

/// What a user has seen.
#[derive(Debug)]
struct Told {
    status: ExitStatus,
    /// The messages, where there was somebody to tell and to hear.
    text: Option<String>,
}

impl Told {
    fn succeeded(&self) -> bool {
        self.status.success()
    }

    fn last_line(&self) -> Option<&str> {
        self.text.as_ref()?.lines().last()
    }

    fn in_short(&self) -> &'static str {
        match (self.status.success(), self.status.signal()) {
            (true, _) => "succeeded",
            (false, Some(9)) => "was killed",
            (false, Some(_)) => "ended by its signal",
            (false, None) => "failed",
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, said {:?}", self.status, self.text)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { act, shards, moment, fault, hit, .. } = self;
        match act {
            Act::Checkpoint { leave_running, verify } => {
                let leave = if *leave_running { " -R" } else { "" };
                let verify = if *verify { " --verify" } else { "" };
                write!(f, "checkpoint{leave}{verify}")?;
            }
            Act::Restore { way: Way::Stream } => f.write_str("restore")?,
            Act::Restore { way: Way::Directory } => f.write_str("restore --directory")?,
            Act::Restore { way: Way::Lazy } => f.write_str("restore --lazy")?,
        }
        write!(f, " -n {shards}: {fault:?} {moment:?}")?;
        if hit.is_empty() { Ok(()) } else { write!(f, " hit {hit}") }
    }
}
