//! What whoever starts a filter, and its user, can do to it: signals, descriptors, limits.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tests::criu::{DumpClient, pipe};
use tests::pipeline::Running;

use crate::scene::{IMAGE, Scene, settle};
use crate::table::{End, Table};

/// Starts the filter so that it waits in the middle of its work.
fn midway(scene: &Scene, table_filter: &str, commands: &str) -> (Running, Option<OwnedFd>) {
    let start = |input| scene.between_after(commands, input, scene.collected());
    if table_filter == "criu-sock-capture" {
        let (running, feed) = scene.fed(start, 0);
        running.wait_for("socket-init");
        let mut client = DumpClient::connect(&scene.images()).expect("the socket is there");
        let mut core = client.open("core-1.img").expect("a pipe");
        core.write_all(&[1; 5000]).expect("capture reads");
        running.wait_for("checkpoint-start");
        scene.keep((client, core));
        (running, Some(feed))
    } else {
        let (running, feed) = scene.fed(start, IMAGE.points[2].1);
        (running, Some(feed))
    }
}

/// Lets the rest of the work come.
fn go_on(scene: &Scene, table_filter: &str, running: &Running, feed: OwnedFd) {
    if table_filter == "criu-sock-capture" {
        return;
    }
    let (_, rest) = IMAGE.stream.split_at(IMAGE.points[2].1);
    let mut feed = File::from(feed);
    // Slowly, so that signals come in the middle.
    for piece in rest.chunks(32 << 10) {
        feed.write_all(piece).expect("it reads");
        thread::sleep(Duration::from_millis(1));
    }
    drop(feed);
    scene.restore_if_served(running);
}

pub(crate) fn signals(table: &mut Table) {
    let filter = table.filter();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        table.cell("signals", &format!("{signal} midway"), End::Killed(signal), |scene| {
            let (running, feed) = midway(scene, filter, "true");
            scene.keep(feed);
            settle(&running);
            running.signal_when_caught(signal);
            running
        });
    }
    if filter == "criu-sock-capture" {
        table.cell("signals", "SIGUSR1 every ms", End::Seen, |scene| {
            let start = |input| scene.between(input, scene.collected());
            let (running, feed) = scene.fed(start, 0);
            running.wait_for("socket-init");
            let storm = Storm::over(&running);
            let mut client = DumpClient::connect(&scene.images()).expect("the socket is there");
            let mut pages = client.open("pages-1.img").expect("a pipe");
            for piece in IMAGE.stream.chunks(32 << 10) {
                pages.write_all(piece).expect("capture reads");
                thread::sleep(Duration::from_millis(1));
            }
            drop(pages);
            client.send("inventory.img", b"all").expect("capture reads");
            storm.end();
            drop((client, feed));
            running
        });
    } else {
        table.cell("signals", "SIGUSR1 every ms", End::Seen, |scene| {
            let (running, feed) = midway(scene, filter, "true");
            settle(&running);
            let storm = Storm::over(&running);
            let (_, rest) = IMAGE.stream.split_at(IMAGE.points[2].1);
            let (rest, last) = rest.split_at(rest.len() - 1);
            let mut feed = File::from(feed.expect("a pipe"));
            for piece in rest.chunks(32 << 10) {
                feed.write_all(piece).expect("it reads");
                thread::sleep(Duration::from_millis(1));
            }
            storm.end();
            feed.write_all(last).expect("it reads");
            drop(feed);
            scene.restore_if_served(&running);
            running
        });
        table.cell("signals", "SIGHUP, inherited as ignored", End::Success, |scene| {
            let (running, feed) = midway(scene, filter, "trap '' HUP");
            settle(&running);
            running.signal(Signal::SIGHUP);
            go_on(scene, filter, &running, feed.expect("a pipe"));
            running
        });
    }
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

/// A signal every millisecond.
struct Storm {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Storm {
    fn over(running: &Running) -> Storm {
        let (pid, over) = (running.pid(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                kill(pid, Signal::SIGUSR1).expect("the program is there");
                thread::sleep(Duration::from_millis(1));
            }
        });
        Storm { over, thread }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the storm");
    }
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
    for descriptors in [3, 4, 5, 6, 8, 10, 12, 16, 22, 24] {
        let fault = format!("EMFILE (ulimit -n {descriptors})");
        table.cell("start", &fault, End::Seen, |scene| {
            limited(scene, filter, &format!("ulimit -n {descriptors}"))
        });
    }
    for kilobytes in [3000, 5000, 6000, 8000, 12000, 20000, 40000] {
        let fault = format!("ENOMEM (ulimit -v {kilobytes})");
        table.cell("start", &fault, End::Seen, |scene| {
            limited(scene, filter, &format!("ulimit -v {kilobytes}"))
        });
    }
}

/// Runs under a limit: it fails in some way, or does its work.
fn limited(scene: &Scene, filter: &str, limit: &str) -> Running {
    let length = if filter == "criu-sock-capture" { 0 } else { IMAGE.stream.len() };
    let start = |input| scene.between_after(limit, input, scene.collected());
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
