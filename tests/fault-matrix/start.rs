//! What whoever starts a filter, and its user, can do to it: signals, descriptors, limits.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tests::criu::{DumpClient, pipe};
use tests::pipeline::Running;

use crate::scene::{IMAGE, Scene, settle};
use crate::table::{End, Table};

/// A filter that waits in the middle of its work.
struct Midway {
    running: Running,
    /// What its input comes from.
    feed: OwnedFd,
    /// The dump that goes on, and its open file.
    dump: Option<(DumpClient, File)>,
}

impl Midway {
    fn start(scene: &Scene, commands: &str) -> Midway {
        let start = |input| scene.between_after(commands, input, scene.collected());
        if scene.filter() != "criu-sock-capture" {
            let (running, feed) = scene.fed(start, IMAGE.points[2].1);
            settle(&running);
            return Midway { running, feed, dump: None };
        }
        let (running, feed) = scene.fed(start, 0);
        running.wait_for("socket-init");
        let mut client = DumpClient::connect(&scene.images()).expect("the socket is there");
        let mut core = client.open("core-1.img").expect("a pipe");
        core.write_all(&[1; 5000]).expect("capture reads");
        running.wait_for("checkpoint-start");
        settle(&running);
        Midway { running, feed, dump: Some((client, core)) }
    }

    /// Leaves it there.
    fn stay(self, scene: &Scene) -> Running {
        scene.keep((self.feed, self.dump));
        self.running
    }

    /// Lets the rest of the work come, slowly, so that signals come in the middle.
    fn go_on(self, scene: &Scene) -> Running {
        let (_, rest) = IMAGE.stream.split_at(IMAGE.points[2].1);
        let slowly = |mut to: File| {
            for piece in rest.chunks(32 << 10) {
                to.write_all(piece).expect("it reads");
                thread::sleep(Duration::from_millis(1));
            }
        };
        match self.dump {
            Some((mut client, core)) => {
                slowly(core);
                client.send("inventory.img", b"all").expect("capture reads");
            }
            None => slowly(self.feed.into()),
        }
        scene.restore_if_served(&self.running);
        self.running
    }
}

pub(crate) fn signals(table: &mut Table) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        table.cell("signals", &format!("{signal} midway"), End::Killed(signal), |scene| {
            let running = Midway::start(scene, "true").stay(scene);
            running.signal_when_caught(signal);
            running
        });
    }
    storm(table, "SIGUSR1 every ms", &[Signal::SIGUSR1]);
    // Which interrupts system calls that no handler would.
    storm(table, "SIGSTOP and SIGCONT every ms", &[Signal::SIGSTOP, Signal::SIGCONT]);
    table.cell("signals", "SIGHUP, inherited as ignored", End::Success, |scene| {
        let work = Midway::start(scene, "trap '' HUP");
        work.running.signal(Signal::SIGHUP);
        work.go_on(scene)
    });
    table.cell(
        "signals",
        "SIGTERM, stderr full after SIGUSR1 storm",
        End::Killed(Signal::SIGTERM),
        |scene| {
            let (stalled, stderr) = pipe(None).expect("a pipe");
            scene.keep(stalled);
            let (input, feed) = pipe(None).expect("a pipe");
            scene.keep(feed);
            let running = scene.between(input, scene.collected()).stderr_to(stderr).start();
            settle(&running);
            // 64 KiB of lines of 50 bytes.
            for _ in 0..3000 {
                running.signal(Signal::SIGUSR1);
                thread::sleep(Duration::from_micros(200));
            }
            running.signal_when_caught(Signal::SIGTERM);
            running
        },
    );
}

/// These signals in turn, one every millisecond, while the work goes on.
fn storm(table: &mut Table, fault: &str, signals: &[Signal]) {
    table.cell("signals", fault, End::Counted, |scene| {
        let work = Midway::start(scene, "true");
        let (pid, over) = (work.running.pid(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for signal in signals {
                        kill(pid, *signal).expect("nobody has waited for it");
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            let running = work.go_on(scene);
            over.store(true, Ordering::Relaxed);
            running
        })
    });
}

pub(crate) fn descriptors_and_limits(table: &mut Table) {
    let filter = table.filter();
    let closed: &[(&str, &str, &str)] = match filter {
        "criu-sock-capture" => &[("stdout closed", ">&-", "stdout: is not open")],
        "shard-split" => &[
            ("stdin closed", "<&-", "stdin: is not open"),
            ("shard closed", "10>&-", "shard 0 (fd 10): is not open"),
        ],
        "shard-merge" => &[
            ("stdout closed", ">&-", "stdout: is not open"),
            ("shard closed", "10>&-", "shard 0 (fd 10): is not open"),
        ],
        _ => &[("stdin closed", "<&-", "stdin: is not open")],
    };
    for (fault, redirection, message) in closed {
        table.cell("start", fault, End::Usage((*message).into()), |scene| {
            let commands = format!("exec {redirection}");
            let start = |input| scene.between_after(&commands, input, scene.collected());
            let (running, feed) = scene.fed(start, 0);
            scene.keep(feed);
            running
        });
    }
    table.cell(
        "start",
        "progress closed",
        End::Usage("progress (fd 9): is not open".into()),
        |scene| {
            let start = |input| scene.between_after("exec 9>&-", input, scene.collected());
            let (running, feed) = scene.fed(start, 0);
            scene.keep(feed);
            running
        },
    );
    let unused: &[(&str, &str)] = match filter {
        "criu-sock-capture" | "shard-merge" => &[("stdin", "<&-"), ("stderr", "2>&-")],
        _ => &[("stdout", ">&-"), ("stderr", "2>&-")],
    };
    for (name, redirection) in unused {
        table.cell(
            "start",
            &format!("{name} closed, which it can do without"),
            End::Success,
            |scene| limited(scene, &format!("exec {redirection}")),
        );
    }
    for descriptors in [3, 4, 5, 6, 8, 10, 12, 16, 22, 24] {
        let fault = format!("EMFILE (ulimit -n {descriptors})");
        table.cell("start", &fault, End::Seen, |scene| {
            limited(scene, &format!("ulimit -n {descriptors}"))
        });
    }
    for kilobytes in [3000, 3400, 3800, 4200, 4600, 5000, 6000, 12000] {
        let fault = format!("ENOMEM (ulimit -v {kilobytes})");
        table.cell("start", &fault, End::Seen, |scene| {
            limited(scene, &format!("ulimit -v {kilobytes}"))
        });
    }
}

/// Runs after these commands, which may limit it: it fails in some way, or does its work.
pub(crate) fn limited(scene: &Scene, commands: &str) -> Running {
    let filter = scene.filter();
    let length = if filter == "criu-sock-capture" { 0 } else { IMAGE.stream.len() };
    let start = |input| scene.between_after(commands, input, scene.collected());
    let (running, feed) = scene.fed(start, length);
    drop(feed);
    settle(&running);
    // What waits for CRIU gets one.
    if running.is_running() && filter == "criu-sock-capture" {
        if let Ok(mut client) = DumpClient::connect(&scene.images()) {
            let _ = client.send("core-1.img", b"core");
            let _ = client.send("inventory.img", b"all");
        }
    } else if running.is_running() && filter == "image-serve" {
        if let Ok(mut client) = tests::criu::RestoreClient::connect(&scene.images()) {
            let _ = client.read("inventory.img");
        }
    }
    running
}
