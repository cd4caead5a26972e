//! What a program under `criu-run` writes arrives, whatever it is written to: all of it, and once.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;
use tests::criu::pipe;

use crate::bench::{Bench, skip, wait_for};
use crate::runs::{COUNT, Run, messages, shell};

/// What has come out by now.
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn from(fd: OwnedFd) -> Collected {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        thread::spawn(move || {
            let (mut file, mut buffer) = (File::from(fd), [0; 4096]);
            // A terminal that nobody has open any more ends with an error.
            while let Ok(read @ 1..) = file.read(&mut buffer) {
                collected.lock().expect("the output").extend(&buffer[..read]);
            }
        });
        Collected(bytes)
    }

    fn lines(&self) -> Vec<u32> {
        let bytes = self.0.lock().expect("the output");
        // What has no end yet is no line yet.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&bytes[..end]).replace('\r', "");
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }
}

/// Evicts a program that writes there, and waits for its end.
fn arrives(name: &str, read: OwnedFd, write: &OwnedFd, terminal_input: bool) {
    let Some(bench) = Bench::set_up(name) else { return };
    let output = Collected::from(read);
    let start = || {
        let script =
            "exec criu-run --image job.img --network-lock skip -- sh -c \"$COUNT\" 250 2>>err";
        let fd = || write.try_clone().expect("a descriptor");
        let mut command = shell(&bench, script);
        command.env("COUNT", COUNT).stdout(fd());
        command.stdin(if terminal_input { Stdio::from(fd()) } else { Stdio::null() });
        Run { child: command.spawn().expect("start criu-run") }
    };
    for round in 1..=3 {
        let mut run = start();
        let before = output.lines().len();
        wait_for("the count", || (output.lines().len() >= before + 3).then_some(()));
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends().code(), Some(75), "round {round}: {}", messages(&bench));
    }
    assert_eq!(start().ends().code(), Some(7), "{}", messages(&bench));
    wait_for("the last line", || (output.lines().last() == Some(&250)).then_some(()));
    let expected: Vec<u32> = (1..=250).collect();
    assert_eq!(output.lines(), expected, "a line is lost or doubled");
}

#[test]
fn output_to_a_pipe_is_complete() {
    let (read, write) = pipe(None).expect("a pipe");
    arrives("to_a_pipe", read, &write, false);
}

#[test]
fn output_to_a_socket_is_complete() {
    let (read, write) = UnixStream::pair().expect("a socket");
    arrives("to_a_socket", read.into(), &write.into(), false);
}

#[test]
fn output_to_a_terminal_is_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("terminal");
    let (read, write) = pipe(None).expect("a pipe");
    let socat = Command::new("socat")
        .args(["-u", &format!("PTY,link={},raw,echo=0", path.display()), "STDOUT"])
        .stdin(Stdio::null())
        .stdout(write)
        .spawn();
    let Ok(mut socat) = socat else {
        skip::<()>("output_to_a_terminal_is_complete", "there is no socat");
        return;
    };
    let open = || File::options().read(true).write(true).open(&path).ok();
    let terminal = wait_for("a terminal", open);
    arrives("to_a_terminal", read, &terminal.into(), true);
    socat.kill().expect("kill socat");
    // Another test may have reaped it.
    let _ = socat.wait();
}
