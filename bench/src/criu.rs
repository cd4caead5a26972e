//! The real CRIU.

use crate::Error;
use crate::cases::{Arrival, Contender, Work};
use crate::cleanup::{self, Undo};
use crate::hog;
use crate::machine::memory_available;
use crate::network::Network;
use crate::options::Options;
use crate::pipes;
use crate::process::{Group, Program};
use crate::reader::{Take, drain};
use crate::results::{Arrived, ProcessCost, Round};
use crate::scratch::Scratch;
use crate::streamer::{Started, Store, Streamer};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, Uid};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Shards of the filters and of the peer.
const SHARDS: usize = 4;

/// What CRIU is measured with: a process that is dumped, and restored, again and again.
#[derive(Debug)]
pub(crate) struct RealCriu<'a> {
    options: &'a Options,
    megabytes: usize,
    pid: Pid,
    /// Where the process says how it is.
    home: Scratch,
}

/// Why the real CRIU can't be measured here.
pub(crate) fn obstacle(options: &Options) -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("only root can dump and restore with CRIU".into());
    }
    let program = &options.criu;
    let mut check = Command::new(program);
    check.arg("check").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !check.status().is_ok_and(|status| status.success()) {
        let program = program.display();
        return Some(format!("`{program} check` fails; try CRIU=$(contrib/get-criu)"));
    }
    // The image in tmpfs, the image on its way, and the process itself.
    let needed = (options.criu_megabytes as u64) * 13 / 4;
    let available = memory_available() >> 20;
    (available < needed).then(|| format!("{needed} MiB of memory needed, {available} available"))
}

impl RealCriu<'_> {
    /// Starts the process, and waits until it has filled its memory.
    pub(crate) fn set_up(options: &Options) -> Result<RealCriu<'_>, Error> {
        RealCriu::of_size(options, options.criu_megabytes)
    }

    fn of_size(options: &Options, megabytes: usize) -> Result<RealCriu<'_>, Error> {
        // What CRIU restores becomes a child of this process, which can then reap it: a process
        // that nobody reaps keeps its pid from being used.
        prctl::set_child_subreaper(true)?;
        let home = Scratch::new("hog")?;
        let child = Command::new(std::env::current_exe()?)
            .arg("hog")
            .arg(home.path())
            .arg(megabytes.to_string())
            .stdin(Stdio::null())
            .spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        cleanup::later(Undo::Kill(pid));
        let hog = RealCriu { options, megabytes, pid, home };
        wait_for(&hog.home.path().join(hog::READY))?;
        Ok(hog)
    }

    /// One contender's dump, or restore.
    pub(crate) fn run(&self, work: &Work, contender: &Contender) -> Result<Round, Error> {
        let images = Scratch::in_memory("images")?;
        let images = images.path();
        let Options { base, peer, .. } = self.options;
        let streamer = match contender {
            Contender::Peer => Streamer::Peer(peer.as_deref().ok_or("no PEER")?),
            Contender::Base => Streamer::Base(base.as_deref().ok_or("no BASE")?),
            Contender::Early => Streamer::MetadataFirst,
            _ => Streamer::Filters,
        };
        match (work, contender) {
            (Work::RealRestore(_), Contender::Criu) => {
                self.dump_to_directory(images, &[])?;
                self.reap()?;
                self.restore_from_directory(images)
            }
            (Work::RealRestore(arrival), _) => {
                self.dump_to_files(streamer, images, &[])?;
                self.reap()?;
                match arrival {
                    Arrival::There => self.restore_from_files(streamer, images),
                    Arrival::Network(rate) => self.restore_as_it_comes(streamer, images, *rate),
                }
            }
            (Work::RealStart | Work::RealFill, Contender::Tenth) => {
                RealCriu::of_size(self.options, self.megabytes / 10)?.run(work, &Contender::Filters)
            }
            (Work::RealStart | Work::RealFill, Contender::Criu) => {
                self.dump_to_directory(images, &[])?;
                self.reap()?;
                let (asked, answered) = self.ask()?;
                let round = self.restore_from_directory(images)?;
                self.until(work, round, asked, answered)
            }
            (Work::RealStart | Work::RealFill, _) => {
                let path = images.join("image");
                let started = streamer.capture(images, vec![File::create(&path)?.into()])?;
                self.with_criu(started, "dump", images, &[])?;
                self.reap()?;
                let (asked, answered) = self.ask()?;
                let started = streamer.serve_lazily(images, File::open(&path)?.into())?;
                let mut round = self.with_criu(started, "restore", images, &["--lazy-pages"])?;
                round.wall_seconds = asked.elapsed().as_secs_f64();
                let round = self.checked(round)?;
                self.until(work, round, asked, answered)
            }
            (_, Contender::Criu) => self.dump_to_directory(images, &["--leave-running"]),
            (_, Contender::Kept) => self.dump_to_files(streamer, images, &["--leave-running"]),
            _ => self.dump_away(streamer, images),
        }
    }

    /// Asks the process that will be restored. When this was, and when it answers.
    fn ask(&self) -> Result<(Instant, JoinHandle<Option<Instant>>), Error> {
        let path = self.home.path().join(hog::ANSWERED);
        let _ = fs::remove_file(&path);
        fs::write(self.home.path().join(hog::ASK), "")?;
        let wait = move || wait_for(&path).ok().map(|()| Instant::now());
        Ok((Instant::now(), thread::spawn(wait)))
    }

    /// The round, with the time that the work is about.
    fn until(
        &self,
        work: &Work,
        round: Round,
        asked: Instant,
        answered: JoinHandle<Option<Instant>>,
    ) -> Result<Round, Error> {
        let answered = answered.join().ok().flatten().ok_or("the process does not answer")?;
        match work {
            Work::RealStart => {
                Ok(Round { wall_seconds: (answered - asked).as_secs_f64(), ..round })
            }
            _ => Ok(round),
        }
    }

    fn dump_to_directory(&self, images: &Path, options: &[&str]) -> Result<Round, Error> {
        let start = Instant::now();
        let criu = Group::start(vec![self.criu("dump", images).args(options)])?;
        let processes = or_log(criu.finish(), images, "dump")?;
        Ok(self.round(start, processes))
    }

    fn dump_to_files(
        &self,
        streamer: Streamer<'_>,
        images: &Path,
        options: &[&str],
    ) -> Result<Round, Error> {
        let outputs = shards(images, |path| File::create(path))?;
        let started = streamer.capture(images, outputs)?;
        self.with_criu(started, "dump", images, options)
    }

    fn dump_away(&self, streamer: Streamer<'_>, images: &Path) -> Result<Round, Error> {
        thread::scope(|scope| {
            let mut outputs = Vec::new();
            for _ in 0..SHARDS {
                let (read, write) = pipes::pipe()?;
                scope.spawn(move || drain(read, Take::Splice));
                outputs.push(write);
            }
            let started = streamer.capture(images, outputs)?;
            self.with_criu(started, "dump", images, &["--leave-running"])
        })
    }

    fn restore_from_directory(&self, images: &Path) -> Result<Round, Error> {
        let start = Instant::now();
        let criu = Group::start(vec![self.criu("restore", images)])?;
        let processes = or_log(criu.finish(), images, "restore")?;
        self.checked(self.round(start, processes))
    }

    /// The clock starts with the streamer, which has to take in the image first.
    fn restore_from_files(&self, streamer: Streamer<'_>, images: &Path) -> Result<Round, Error> {
        let inputs = shards(images, |path| File::open(path))?;
        let start = Instant::now();
        let started = streamer.serve(images, inputs, Store::Auto)?;
        let round = self.with_criu(started, "restore", images, &[])?;
        self.checked(Round { wall_seconds: start.elapsed().as_secs_f64(), ..round })
    }

    /// The clock starts with the first byte of the image.
    fn restore_as_it_comes(
        &self,
        streamer: Streamer<'_>,
        images: &Path,
        rate: u64,
    ) -> Result<Round, Error> {
        let network = &Network::new(rate);
        let start = Instant::now();
        thread::scope(|scope| {
            let (mut inputs, mut arriving) = (Vec::new(), Vec::new());
            for file in shards(images, |path| File::open(path))? {
                let (read, write) = pipes::pipe()?;
                arriving.push(scope.spawn(move || network.bring(file.into(), write.into())));
                inputs.push(read);
            }
            let mut started = streamer.serve(images, inputs, Store::Auto)?;
            started.wait_for_socket()?;
            let criu = started.programs.add(self.criu("restore", images).arg("--stream"))?;
            let readers = [criu, self.pid.as_raw()];
            let watching = scope.spawn(move || network.watch(readers));
            let ended = or_log(started.programs.finish(), images, "restore");
            let restored = Instant::now();
            network.done();
            let processes = ended?;
            let mut last = start;
            for shard in arriving {
                last = last.max(shard.join().map_err(|_| "a shard's thread panicked")??);
            }
            let arrived = Arrived {
                seconds_after: restored.saturating_duration_since(last).as_secs_f64(),
                unread_bytes: watching.join().map_err(|_| "the watching thread panicked")?,
            };
            let round = self.round(start, processes);
            let wall_seconds = (restored - start).as_secs_f64();
            self.checked(Round { wall_seconds, arrived: Some(arrived), ..round })
        })
    }

    /// Lets CRIU work with a streamer until both have ended.
    fn with_criu(
        &self,
        mut started: Started,
        action: &str,
        images: &Path,
        options: &[&str],
    ) -> Result<Round, Error> {
        started.wait_for_socket()?;
        let start = Instant::now();
        started.programs.add(self.criu(action, images).arg("--stream").args(options))?;
        let processes = or_log(started.programs.finish(), images, action)?;
        Ok(self.round(start, processes))
    }

    fn criu(&self, action: &str, images: &Path) -> Program {
        let criu = Program::new(&self.options.criu).aside().arg(action).arg("-D").arg(images);
        let log = format!("{action}.log");
        let criu = criu.args(&["-v1", "-o", &log, "--network-lock", "skip"]);
        match action {
            "dump" => criu.args(&["-t", &self.pid.to_string()]),
            _ => criu.arg("--restore-detached"),
        }
    }

    /// Once CRIU has killed the process: frees its pid.
    fn reap(&self) -> Result<(), Error> {
        waitpid(self.pid, None)?;
        Ok(())
    }

    /// Lets the restored process check its memory.
    fn checked(&self, round: Round) -> Result<Round, Error> {
        let path = |name: &str| self.home.path().join(name);
        fs::write(path(hog::CHECK), "")?;
        wait_for(&path(hog::CHECKED))?;
        let verdict = fs::read_to_string(path(hog::CHECKED))?;
        fs::remove_file(path(hog::CHECKED))?;
        match verdict.as_str() {
            "ok" => Ok(round),
            _ => Err(format!("the restored process says: {verdict}").into()),
        }
    }

    fn round(&self, start: Instant, processes: Vec<ProcessCost>) -> Round {
        Round {
            wall_seconds: start.elapsed().as_secs_f64(),
            bytes: (self.megabytes as u64) << 20,
            files: 1,
            processes,
            arrived: None,
        }
    }
}

impl Drop for RealCriu<'_> {
    fn drop(&mut self) {
        cleanup::now(&Undo::Kill(self.pid));
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn shards(directory: &Path, open: impl Fn(&Path) -> io::Result<File>) -> io::Result<Vec<OwnedFd>> {
    let path = |index: usize| directory.join(format!("{index}.shard"));
    (0..SHARDS).map(|index| Ok(open(&path(index))?.into())).collect()
}

/// Adds CRIU's last words to an error.
fn or_log(
    outcome: Result<Vec<ProcessCost>, Error>,
    directory: &Path,
    action: &str,
) -> Result<Vec<ProcessCost>, Error> {
    outcome.map_err(|error| {
        let log = fs::read_to_string(directory.join(format!("{action}.log"))).unwrap_or_default();
        let words: Vec<_> = log.lines().rev().take(3).collect();
        format!("{error}: {}", words.join(" < ")).into()
    })
}

fn wait_for(path: &Path) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(60);

    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(format!("{} isn't there after {PATIENCE:?}", path.display()).into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
