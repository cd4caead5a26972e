//! The programs that a command starts, and everything that they start.
//!
//! Each program has a session of its own, so that the keyboard's signals do not reach it. What
//! they leave behind, in whatever session, becomes a child of this process, a *subreaper*: so all
//! of it can be found, ended and waited for.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getsid};
use pipe_io::process;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

/// What a program is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `criu-sock-capture`.
    Capture,
    /// `criu-page-capture`.
    PageCapture,
    /// `shard-split`.
    Split,
    /// `shard-merge`.
    Merge,
    /// `image-combine`.
    Combine,
    /// `image-serve`.
    Serve,
    /// `image-extract`.
    Extract,
    /// The user's COMMAND, or the one of a shard.
    Command(Option<usize>),
    /// The user's COMMAND that reads the image back, or the one of a shard.
    ReadBack(Option<usize>),
    /// The program that connects to another host, or the one of several connections.
    Connection(Option<usize>),
    /// What moves the image to or from that: a thread, not a program.
    Relay(Option<usize>),
    /// tar(1), for the files that go with a tree.
    Tar,
    /// CRIU.
    Criu,
    /// The root of a tree that was restored as a child of this process.
    Tree,
}

/// A program that was started.
#[derive(Clone, Copy, Debug)]
struct Member {
    role: Role,
    pid: Pid,
    ended: Option<ExitStatus>,
}

/// All programs that were started.
#[derive(Debug, Default)]
pub struct Family {
    members: Vec<Member>,
}

impl Family {
    /// Starts a program, in a session of its own unless `command` says otherwise.
    pub fn start(&mut self, role: Role, mut command: Command) -> io::Result<Pid> {
        // The status is taken by `reap`, not from this handle.
        let pid = Pid::from_raw(command.spawn()?.id() as i32);
        self.members.push(Member { role, pid, ended: None });
        Ok(pid)
    }

    /// Takes over a child that another program has made for this one.
    pub fn adopt(&mut self, role: Role, pid: Pid) {
        self.members.push(Member { role, pid, ended: None });
    }

    /// Takes the statuses of all children that have ended, and returns those of programs that
    /// were started here.
    pub fn reap(&mut self) -> Vec<(Role, ExitStatus)> {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = process::reap_any() {
            let member = self.members.iter_mut().find(|it| it.pid == pid && it.ended.is_none());
            if let Some(member) = member {
                member.ended = Some(status);
                ended.push((member.role, status));
            }
        }
        ended
    }

    /// How a program has ended; `None` if it was not started, or runs. Of several that were started
    /// one after the other, the last one counts.
    pub fn status(&self, role: Role) -> Option<ExitStatus> {
        self.members.iter().rfind(|it| it.role == role)?.ended
    }

    /// Whether it was started.
    pub fn started(&self, role: Role) -> bool {
        self.members.iter().any(|it| it.role == role)
    }

    /// The process of a program that runs.
    pub fn running(&self, role: Role) -> Option<Pid> {
        let mut running = self.members.iter().filter(|it| it.ended.is_none());
        running.find(|it| it.role == role).map(|it| it.pid)
    }

    /// The role of a process, where it is one of the programs that were started.
    pub fn role(&self, pid: Pid) -> Option<Role> {
        self.members.iter().find(|it| it.pid == pid).map(|it| it.role)
    }

    /// The processes below this one, apart from those at and below CRIU. A zombie is none.
    pub fn without_criu(&self) -> Vec<Pid> {
        let processes = Processes::now();
        let criu = self.running(Role::Criu);
        let spared = criu.map(|criu| processes.from(criu)).unwrap_or_default();
        let mut all = processes.below(getpid());
        all.retain(|pid| !spared.contains(pid));
        all
    }

    /// The processes below CRIU: scripts that it runs, mostly.
    pub fn below_criu(&self) -> Vec<Pid> {
        self.running(Role::Criu).map(|criu| Processes::now().below(criu)).unwrap_or_default()
    }

    /// The processes that are left in the sessions of programs that have ended, but not the tree
    /// with this root: it may have been given the number of one of those.
    pub fn left_in_sessions(&self, root: Option<Pid>) -> Vec<Pid> {
        let processes = Processes::now();
        let spared = root.map(|root| processes.from(root)).unwrap_or_default();
        let mut left = processes.below(getpid());
        left.retain(|pid| !spared.contains(pid));
        left.retain(|pid| getsid(Some(*pid)).is_ok_and(|session| self.role(session).is_some()));
        left
    }

    /// Takes a program for ended that cannot be.
    pub fn give_up_on(&mut self, role: Role) {
        let lost = ExitStatus::from_raw(Signal::SIGKILL as i32);
        let running = self.members.iter_mut().filter(|it| it.role == role && it.ended.is_none());
        running.for_each(|it| it.ended = Some(lost));
    }
}

/// Sends a signal to each, and lets it run to take it.
pub fn signal_all(processes: &[Pid], signal: Signal) {
    for pid in processes {
        let _ = kill(*pid, signal);
        let _ = kill(*pid, Signal::SIGCONT);
    }
}

/// Which process is whose child, at one moment.
#[derive(Debug)]
pub struct Processes(HashMap<Pid, Vec<Pid>>);

impl Processes {
    /// Looks at all processes. What has ended and was not waited for is left out.
    pub fn now() -> Processes {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = number.map(Pid::from_raw) else { continue };
            if let Some(Stat { parent, state, .. }) = Stat::of(pid) {
                if !matches!(state, 'Z' | 'X' | 'x') {
                    children.entry(parent).or_default().push(pid);
                }
            }
        }
        Processes(children)
    }

    /// The process, and all below it.
    pub fn from(&self, root: Pid) -> Vec<Pid> {
        let mut found = vec![root];
        let mut index = 0;
        while let Some(pid) = found.get(index) {
            // A table that was read while processes came and went may have a circle.
            let children = self.0.get(pid).into_iter().flatten().copied();
            let new: Vec<Pid> = children.filter(|child| !found.contains(child)).collect();
            found.extend(new);
            index += 1;
        }
        found
    }

    /// All processes below this one.
    pub fn below(&self, root: Pid) -> Vec<Pid> {
        self.from(root).split_off(1)
    }
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T`, `Z` and so on.
    pub state: char,
    /// Its parent.
    pub parent: Pid,
    /// Its session.
    pub session: Pid,
    /// When it started, in ticks since the machine did: tells it from a later one with its number.
    pub started: u64,
}

impl Stat {
    /// `None` if there is no such process.
    pub fn of(pid: Pid) -> Option<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name, between parentheses, may hold anything.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |index: usize| fields.get(index).copied();
        let pid = |index| field(index)?.parse().ok().map(Pid::from_raw);
        Some(Stat {
            state: field(0)?.chars().next()?,
            parent: pid(1)?,
            session: pid(3)?,
            started: field(19)?.parse().ok()?,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Capture => f.write_str("criu-sock-capture"),
            Role::PageCapture => f.write_str("criu-page-capture"),
            Role::Split => f.write_str("shard-split"),
            Role::Merge => f.write_str("shard-merge"),
            Role::Combine => f.write_str("image-combine"),
            Role::Serve => f.write_str("image-serve"),
            Role::Extract => f.write_str("image-extract"),
            Role::Command(None) => f.write_str("the command"),
            Role::Command(Some(shard)) => write!(f, "the command of shard {shard}"),
            Role::ReadBack(None) => f.write_str("the command that reads the image back"),
            Role::ReadBack(Some(shard)) => {
                write!(f, "the command that reads shard {shard} back")
            }
            Role::Connection(None) => f.write_str("the connection"),
            Role::Connection(Some(index)) => write!(f, "connection {index}"),
            Role::Relay(_) => f.write_str("the relay"),
            Role::Tar => f.write_str("tar"),
            Role::Criu => f.write_str("criu"),
            Role::Tree => f.write_str("the tree"),
        }
    }
}

/// How a program has ended, as part of a sentence: `failed (status 1)`.
#[derive(Clone, Copy, Debug)]
pub struct HasEnded(pub ExitStatus);

impl fmt::Display for HasEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(0), _) => f.write_str("succeeded"),
            (Some(code), _) => write!(f, "failed (status {code})"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed ({signal})"),
                Err(_) => write!(f, "was killed (signal {number})"),
            },
            (None, None) => f.write_str("failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_name_with_parentheses_does_not_mislead() {
        let stat = Stat::of(getpid()).unwrap();
        assert_eq!(stat.parent, nix::unistd::getppid());
        assert!(stat.started > 0);
    }

    #[test]
    fn processes_are_found_below_their_grandparent() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let root = Pid::from_raw(shell.id() as i32);
        let below = loop {
            let below = Processes::now().below(root);
            if !below.is_empty() {
                break below;
            }
        };
        assert_eq!(Stat::of(below[0]).unwrap().parent, root);
        signal_all(&below, Signal::SIGKILL);
        shell.wait().unwrap();
    }
}
