//! The gate: CRIU's action script asks it whether a process tree may go on.
//!
//! CRIU runs its action scripts at every stage of a dump or a restore, and waits for them. At
//! `post-dump` the tree is still frozen, and at `post-restore` it is there but does not run yet;
//! if a script fails then, CRIU undoes what it has done. The script is the command itself, started
//! once more by CRIU ([`answer`]): it connects to the gate, a socket that needs no file, and
//! succeeds only if it is told yes. Nobody there to answer is a no.

use crate::family::Stat;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, geteuid, getppid};
use pipe_io::poll::{self, PollFd, PollFlags};
use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// In CRIU's environment: the gate's name.
const GATE: &str = "CRIU_STREAM_UTILS_GATE";
/// In CRIU's environment: for how many seconds the script waits for an answer.
const PATIENCE: &str = "CRIU_STREAM_UTILS_PATIENCE";
/// In the environment of CRIU's scripts: the stage.
const STAGE: &str = "CRTOOLS_SCRIPT_ACTION";
/// In the environment of CRIU's scripts: the root of the tree.
const ROOT: &str = "CRTOOLS_INIT_PID";

const YES: u8 = b'y';

/// A stage at which the tree waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// All of the image was handed over, and the tree is frozen.
    PostDump,
    /// The tree is there, and does not run yet.
    PostRestore,
}

impl Stage {
    const ALL: [(Stage, &'static str); 2] =
        [(Stage::PostDump, "post-dump"), (Stage::PostRestore, "post-restore")];

    fn named(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|(_, it)| *it == name).map(|(stage, _)| stage)
    }
}

/// Where CRIU's script is answered.
#[derive(Debug)]
pub struct Gate {
    name: String,
    listener: UnixListener,
    /// Connected, and their questions not complete.
    arriving: Vec<(UnixStream, Vec<u8>)>,
}

/// A script that waits for its answer. Dropped, it is a no.
#[derive(Debug)]
pub struct Question {
    /// The stage.
    pub stage: Stage,
    /// The root of the tree as CRIU numbers it, where CRIU tells.
    pub root: Option<Pid>,
    stream: UnixStream,
}

impl Gate {
    /// A gate that nobody else can guess the name of.
    pub fn new() -> io::Result<Gate> {
        let name = format!("criu-stream-utils-{:032x}", u128::from_be_bytes(pipe_io::random()?));
        let listener = UnixListener::bind_addr(&address(&name)?)?;
        listener.set_nonblocking(true)?;
        Ok(Gate { name, listener, arriving: Vec::new() })
    }

    /// Lets this CRIU ask here, by a script that waits for so long.
    ///
    /// The script has the path of this process's program, which is there as long as the process
    /// is: CRIU 4 executes the path, and earlier ones hand it to a shell.
    pub fn ask_here(&self, criu: &mut Command, patience: Duration) {
        criu.env(GATE, &self.name).env(PATIENCE, patience.as_secs().to_string());
        criu.arg("--action-script").arg(format!("/proc/{}/exe", std::process::id()));
    }

    /// What to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.arriving.iter().map(|(stream, _)| stream.as_fd()))
    }

    /// The questions that are complete, without waiting.
    pub fn questions(&mut self) -> Vec<Question> {
        while let Ok((stream, _)) = self.listener.accept() {
            if is_trusted(&stream) && stream.set_nonblocking(true).is_ok() {
                self.arriving.push((stream, Vec::new()));
            }
        }
        let mut complete = Vec::new();
        for (stream, text) in std::mem::take(&mut self.arriving) {
            complete.extend(self.go_on(stream, text));
        }
        complete
    }

    /// Reads what has come of a question.
    fn go_on(&mut self, mut stream: UnixStream, mut text: Vec<u8>) -> Option<Question> {
        const LONGEST: usize = 200;

        let mut buffer = [0; LONGEST];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => text.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
            if text.ends_with(b"\n") {
                return Question::parse(&text, stream);
            }
            if text.len() >= LONGEST {
                return None;
            }
            if !poll::is_readable(&stream).unwrap_or(false) {
                self.arriving.push((stream, text));
                return None;
            }
        }
    }
}

impl Question {
    fn parse(text: &[u8], stream: UnixStream) -> Option<Question> {
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let stage = Stage::named(words.next()?)?;
        let root = words.next().and_then(|word| word.parse().ok()).map(Pid::from_raw);
        Some(Question { stage, root, stream })
    }

    /// Lets the tree go on. `false` if the script did not wait for that.
    pub fn yes(mut self) -> bool {
        self.stream.write_all(&[YES]).is_ok()
    }
}

/// Whether the process at the other end is root's or our own.
pub(crate) fn is_trusted(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// In a process that CRIU has started as its action script: asks the gate, and returns the
/// script's exit status. `None` in every other process.
pub fn answer() -> Option<ExitCode> {
    let (name, stage) = (env::var(GATE).ok()?, env::var(STAGE).ok()?);
    if env::args_os().len() != 1 {
        return None;
    }
    // Nothing is decided at other stages.
    let Some(stage) = Stage::named(&stage) else { return Some(ExitCode::SUCCESS) };
    let patience = env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    match ask(&name, stage, Duration::from_secs(patience)) {
        Ok(true) => Some(ExitCode::SUCCESS),
        Ok(false) => Some(refused("the answer is no")),
        Err(error) => Some(refused(&pipe_io::reason(&error))),
    }
}

/// In CRIU's log.
fn refused(reason: &str) -> ExitCode {
    eprintln!("criu-stream-utils: may not go on: {reason}");
    ExitCode::FAILURE
}

fn ask(name: &str, stage: Stage, patience: Duration) -> io::Result<bool> {
    /// How often to see whether CRIU is still there.
    const LOOK: Duration = Duration::from_secs(1);

    let criu = getppid();
    let until = Instant::now() + patience;
    let mut stream = UnixStream::connect_addr(&address(name)?)?;
    if !is_trusted(&stream) {
        return Err(io::Error::other("the gate is another user's"));
    }
    let word = Stage::ALL.into_iter().find(|(it, _)| *it == stage).map_or("", |(_, name)| name);
    let root = env::var(ROOT).unwrap_or_default();
    stream.write_all(format!("{word} {root}\n").as_bytes())?;
    loop {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        if poll::wait_for(&mut fds, LOOK)? {
            let mut answer = [0];
            return Ok(stream.read(&mut answer)? == 1 && answer == [YES]);
        }
        // Nobody waits for the answer where CRIU was killed.
        if getppid() != criu || Stat::of(criu).is_none() {
            return Err(io::Error::other("CRIU has gone"));
        }
        if Instant::now() >= until {
            return Err(io::Error::other("no answer came in time"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn question(gate: &mut Gate) -> Question {
        loop {
            poll::wait_readable(gate.fds().last().unwrap()).unwrap();
            if let Some(question) = gate.questions().pop() {
                return question;
            }
        }
    }

    #[test]
    fn a_script_is_told_yes_or_no() {
        let mut gate = Gate::new().unwrap();
        for expected in [true, false] {
            let name = gate.name.clone();
            let asking =
                thread::spawn(move || ask(&name, Stage::PostDump, Duration::from_secs(60)));
            let question = question(&mut gate);
            assert_eq!(question.stage, Stage::PostDump);
            match expected {
                true => assert!(question.yes()),
                false => drop(question),
            }
            assert_eq!(asking.join().unwrap().unwrap(), expected);
        }
    }

    #[test]
    fn nobody_there_is_a_no() {
        let gate = Gate::new().unwrap();
        let name = gate.name.clone();
        drop(gate);
        assert!(ask(&name, Stage::PostDump, Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_gate_that_goes_away_is_a_no() {
        let gate = Gate::new().unwrap();
        let name = gate.name.clone();
        let asking = thread::spawn(move || ask(&name, Stage::PostRestore, Duration::from_secs(60)));
        poll::wait_readable(&gate.listener).unwrap();
        drop(gate);
        assert!(!asking.join().unwrap().unwrap_or(false));
    }
}
