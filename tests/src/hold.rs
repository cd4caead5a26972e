//! A process whose life is at stake: `victim hold`. It finds out by itself whether its memory is
//! whole; its TCP connection, if it has one, ends here.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::pipeline::{PATIENCE, command, program};

/// How often to look.
const LOOK: Duration = Duration::from_millis(2);

/// `victim hold`, killed with all of its copies when this is dropped.
#[derive(Debug)]
pub struct Hold {
    file: PathBuf,
    /// The process that was started here, if one was.
    root: Option<Child>,
    connection: Option<TcpStream>,
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It goes on, with this process id.
    Runs(i32),
    /// It is not there.
    Gone,
    /// Something else, which must not be.
    Broken(String),
}

impl Hold {
    /// Starts it with so much memory, and waits until it goes.
    pub fn start(directory: &Path, megabytes: usize, with_tcp: bool) -> Hold {
        // What is restored becomes a child of this process in the end, and is reaped.
        prctl::set_child_subreaper(true).expect("become a subreaper");
        let file = directory.join("held");
        let mut victim = command(program("victim"));
        victim.arg("hold").arg(&file).arg(megabytes.to_string()).current_dir(directory);
        let listener = with_tcp.then(|| TcpListener::bind("127.0.0.1:0").expect("listen"));
        if let Some(listener) = &listener {
            let port = listener.local_addr().expect("its address").port();
            victim.arg("--tcp").arg(port.to_string());
        }
        victim.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let root = victim.spawn().expect("start the victim");
        let connection = listener.map(|listener| listener.accept().expect("it connects").0);
        let hold = Hold { file, root: Some(root), connection };
        hold.must_run();
        hold
    }

    /// One that somebody else starts in this directory, as `victim hold held MEGABYTES`.
    pub fn started_elsewhere(directory: &Path) -> Hold {
        prctl::set_child_subreaper(true).expect("become a subreaper");
        Hold { file: directory.join("held"), root: None, connection: None }
    }

    /// The process that was started here.
    pub fn pid(&self) -> i32 {
        self.root.as_ref().expect("it was started here").id() as i32
    }

    /// What is seen of it by now, waiting until that is clear.
    pub fn life(&self) -> Life {
        let deadline = Instant::now() + PATIENCE;
        let before = self.seen();
        loop {
            let now = self.seen();
            if let Some((pid, generation)) = &now {
                match (generation, &before) {
                    (Err(fault), _) => return Life::Broken(fault.clone()),
                    // Another one than that which was begun before.
                    (Ok(now), Some((before_pid, Ok(before))))
                        if before_pid == pid && *now > before + 1 =>
                    {
                        return Life::Runs(*pid);
                    }
                    (Ok(_), Some((before_pid, Ok(_)))) if before_pid == pid => {}
                    (Ok(_), _) if is_there(*pid) => return Life::Runs(*pid),
                    _ => {}
                }
            }
            if before.is_some() && self.copies().is_empty() {
                return Life::Gone;
            }
            if Instant::now() >= deadline {
                return Life::Broken(format!("neither runs nor is gone: {}", self.states()));
            }
            sleep(LOOK);
        }
    }

    /// Fails the test unless it goes on, as whichever process.
    #[track_caller]
    pub fn must_run(&self) -> i32 {
        match self.life() {
            Life::Runs(pid) => pid,
            other => panic!("it does not run: {other:?}"),
        }
    }

    /// Fails the test unless it is gone.
    #[track_caller]
    pub fn must_be_gone(&mut self) {
        assert_eq!(self.life(), Life::Gone);
        self.reap();
    }

    /// Reaps it once it is gone, so that its id is free.
    pub fn reap(&mut self) {
        let started = self.root.as_ref().map(|root| root.id() as i32);
        let Some(pid) = started.or_else(|| Some(self.seen()?.0)) else { return };
        let deadline = Instant::now() + PATIENCE;
        while self.copies().is_empty() && Path::new(&format!("/proc/{pid}")).exists() {
            let _ = self.root.as_mut().map(Child::try_wait);
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            if Instant::now() >= deadline {
                return;
            }
            sleep(LOOK);
        }
    }

    /// Whether its TCP connection still carries something there and back; true if it has none.
    pub fn answers(&self) -> Result<(), String> {
        let Some(mut connection) = self.connection.as_ref() else { return Ok(()) };
        const WORD: [u8; 8] = *b"are you?";
        connection.set_read_timeout(Some(PATIENCE)).expect("set the timeout");
        let mut answer = [0; WORD.len()];
        let asked = connection.write_all(&WORD);
        match asked.and_then(|()| connection.read_exact(&mut answer)) {
            Ok(()) if answer == WORD => Ok(()),
            Ok(()) => Err(format!("the connection brings {answer:?}")),
            Err(error) => Err(format!("the connection: {error}")),
        }
    }

    /// The processes that are this one, restored once or more.
    pub fn copies(&self) -> Vec<i32> {
        let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        numbers.filter(|pid| self.owns(*pid) && is_there(*pid)).collect()
    }

    /// Kills it, as whichever process, and waits until it is gone.
    pub fn kill(&mut self) {
        while let copies @ [_, ..] = &self.copies()[..] {
            for pid in copies {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
                let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            }
            sleep(LOOK);
        }
        self.reap();
    }

    /// The process that has written last what it has seen, and that: a generation, or a fault.
    fn seen(&self) -> Option<(i32, Result<u64, String>)> {
        let text = fs::read_to_string(&self.file).ok()?;
        if let Some(fault) = text.trim().strip_prefix("error: ") {
            return Some((0, Err(fault.to_owned())));
        }
        let (pid, generation) = text.trim().split_once(' ')?;
        Some((pid.parse().ok()?, Ok(generation.parse().ok()?)))
    }

    fn states(&self) -> String {
        let state = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let lines = status.lines();
            let wanted = lines.filter(|it| it.starts_with("State") || it.starts_with("TracerPid"));
            format!("{pid}: {}", wanted.collect::<Vec<_>>().join(" "))
        };
        self.copies().into_iter().map(state).collect::<Vec<_>>().join(", ")
    }

    fn owns(&self, pid: i32) -> bool {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"hold"[..])
            && words.get(2) == Some(&self.file.as_os_str().as_encoded_bytes())
    }
}

fn is_there(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ") && !status.contains("State:\tX"))
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.kill();
        let _ = self.root.as_mut().map(Child::wait);
    }
}
