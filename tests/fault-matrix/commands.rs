//! `--filter`: the commands that `shard-split` and `shard-merge` start.

use std::fs;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use tests::pipeline::{Filter, Running};
use tests::stream::deal;

use crate::scene::{IMAGE, Scene, settle};
use crate::table::{End, Table, refused};

/// Two of these commands, between the image and its two shards, which are files `0` and `1`.
fn start(scene: &Scene, command: &str) -> Running {
    let filter = scene.tagged(Filter::new(scene.filter()).progress_apart());
    let filter = filter.current_dir(&scene.path("")).args(["-n", "2", "--filter", command]);
    if scene.filter() == "shard-merge" {
        // The payload goes to the first.
        let shards = deal(&IMAGE.stream, 2, |index| (index + 1) % 2);
        for (index, shard) in shards.iter().enumerate() {
            fs::write(scene.path(&index.to_string()), shard).expect("a file");
        }
        return filter.stdout(scene.collected()).start();
    }
    let (running, feed) = scene.fed(|input: OwnedFd| filter.stdin(input), IMAGE.stream.len());
    drop(feed);
    running
}

pub(crate) fn commands(table: &mut Table) {
    let merges = table.filter() == "shard-merge";
    let (all, marker, half) = match merges {
        true => ("cat $SHARD", "head -c 7 $SHARD", "head -c 100000 $SHARD"),
        false => ("cat > $SHARD", "head -c 7 > $SHARD", "head -c 100000 > $SHARD"),
    };
    table.cell("--filter", "does its work", End::Success, |scene| start(scene, all));
    let first = |rest: &str| format!("[ $SHARD = 0 ] || exec {all}\n{rest}");
    for (fault, command) in [
        ("gone at byte 0, status 3", first("exit 3")),
        ("gone in a marker, status 3", first(&format!("{marker}\nexit 3"))),
        ("gone in a marker, status 0", first(marker)),
        ("gone in a payload, status 3", first(&format!("{half}\nexit 3"))),
        ("gone in a payload, status 0", first(half)),
        ("gone after the image, status 3", first(&format!("{all}\nexit 3"))),
        ("killed at byte 0", first("kill -9 $$")),
        ("killed in a payload", first(&format!("{half}\nkill -9 $$"))),
        ("killed after the image", first(&format!("{all}\nkill -9 $$"))),
        ("is not there", first("exec 2>/dev/null; exec /no/such/command")),
    ] {
        let message = match fault {
            "gone in a marker, status 0" if merges => "shard 0 *: truncated after 7 bytes",
            "gone in a payload, status 0" if merges => "shard 0 *: truncated after 100000 bytes",
            _ => "shard 0 *",
        };
        table.cell("--filter", fault, refused(message), |scene| start(scene, &command));
    }
    for (fault, command) in [
        ("stalled at byte 0, then SIGTERM", first("exec sleep 1000")),
        ("stalled in a marker, then SIGTERM", first(&format!("{marker}\nexec sleep 1000"))),
        ("stalled in a payload, then SIGTERM", first(&format!("{half}\nexec sleep 1000"))),
        ("stalled after the image, then SIGTERM", first(&format!("{all}\nexec sleep 1000"))),
    ] {
        table.cell("--filter", fault, End::Killed(Signal::SIGTERM), |scene| {
            let running = start(scene, &command);
            settle(&running);
            running.signal(Signal::SIGTERM);
            running
        });
    }
    if merges {
        for (point, bytes) in &IMAGE.points {
            let command = format!("head -c {bytes} image; exit 3");
            let message = refused("shard 0 *: failed with exit status 3");
            table.cell(
                "--filter",
                &format!("the only one gone {point}, status 3"),
                message,
                |scene| {
                    fs::write(scene.path("image"), &IMAGE.stream).expect("a file");
                    let filter = scene.tagged(Filter::new(scene.filter()).progress_apart());
                    let filter = filter.current_dir(&scene.path(""));
                    filter.args(["-n", "1", "--filter", &command]).stdout(scene.collected()).start()
                },
            );
        }
    }
}
