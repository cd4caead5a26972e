//! The filters that read a stream: the program before them, the one after them, the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;
use tests::criu::pipe;
use tests::pipeline::{Filter, Running};

use crate::scene::{IMAGE, Scene, settle};
use crate::table::{End, Table, refused};

/// Where the stream comes from, in messages.
fn input(table: &Table) -> &'static str {
    if table.filter() == "shard-merge" { "shard 0 (fd 10)" } else { "stdin" }
}

/// Where the bytes go to, in messages.
fn output(table: &Table) -> &'static str {
    match table.filter() {
        "shard-split" => "shard 0 (fd 10)",
        "shard-merge" => "stdout",
        _ => "external file core-1.img (fd 20)",
    }
}

/// What a complete image leads to.
fn whole(scene: &Scene, running: Running) -> Running {
    scene.restore_if_served(&running);
    running
}

pub(crate) fn program_before(table: &mut Table) {
    let place = input(table);
    table.cell(
        "program before",
        "gone before start",
        refused(format!("{place}: truncated after 0 bytes")),
        |scene| {
            let (input, feed) = pipe(None).expect("a pipe");
            drop(feed);
            scene.between(input, scene.collected()).start()
        },
    );
    for (point, bytes) in IMAGE.points.iter().copied() {
        let truncated = refused(format!("{place}: truncated after {bytes} bytes"));
        table.cell("program before", &format!("gone {point}"), truncated, |scene| {
            let (running, feed) = scene.fed(|input| scene.between(input, scene.collected()), bytes);
            settle(&running);
            drop(feed);
            running
        });
        table.cell(
            "program before",
            &format!("stalled {point}, then SIGTERM"),
            End::Killed(Signal::SIGTERM),
            |scene| {
                let (running, feed) =
                    scene.fed(|input| scene.between(input, scene.collected()), bytes);
                scene.keep(feed);
                running.signal_when_caught(Signal::SIGTERM);
                running
            },
        );
    }
    table.cell("program before", "gone after image_eof", End::Success, |scene| {
        let length = IMAGE.stream.len();
        let (running, feed) = scene.fed(|input| scene.between(input, scene.collected()), length);
        drop(feed);
        whole(scene, running)
    });
    table.cell(
        "program before",
        "writes on after image_eof",
        refused(format!("{place}: byte {}: *", IMAGE.stream.len())),
        |scene| {
            let length = IMAGE.stream.len();
            let (running, feed) =
                scene.fed(|input| scene.between(input, scene.collected()), length);
            // The filter ends at the first of these.
            let _ = File::from(feed).write_all(&[0; 100_000]);
            running
        },
    );
    table.cell("program before", "writes one byte at a time", End::Success, |scene| {
        let (running, feed) = scene.fed(|input| scene.between(input, scene.collected()), 0);
        let mut feed = File::from(feed);
        let (slow, fast) = IMAGE.stream.split_at(500);
        slow.iter().for_each(|byte| feed.write_all(&[*byte]).expect("it reads"));
        feed.write_all(fast).expect("it reads");
        drop(feed);
        whole(scene, running)
    });
    table.cell(
        "program before",
        "is a directory",
        End::Usage(format!("{place}: is not a pipe*")),
        |scene| {
            let directory = File::open(scene.images()).expect("a directory");
            scene.between(directory, scene.collected()).start()
        },
    );
    table.cell(
        "program before",
        "a file that is cut short",
        refused(format!("{place}: truncated after *")),
        |scene| {
            let path = scene.path("cut");
            fs::write(&path, &IMAGE.stream[..IMAGE.stream.len() / 2]).expect("a file");
            scene.between(File::open(path).expect("a file"), scene.collected()).start()
        },
    );
}

/// What becomes of a reader that goes does not depend on who starts the filter.
pub(crate) const INHERITED_SIGPIPE: [(&str, &str); 2] = [
    ("gone, SIGPIPE inherited as ignored", "trap '' PIPE"),
    ("gone, SIGPIPE inherited as default", "trap - PIPE"),
];

pub(crate) fn program_after(table: &mut Table) {
    let broken = refused(format!("{}: Broken pipe", output(table)));
    table.cell("program after", "gone before start", broken.clone(), |scene| {
        let (reader, output) = pipe(None).expect("a pipe");
        drop(reader);
        scene.fed(|input| scene.between(input, output), IMAGE.stream.len()).0
    });
    for (point, bytes) in [("at byte 0", 0), ("in a marker", 6), ("in a payload", 1 << 20)] {
        let fault = format!("gone {point}");
        table.cell("program after", &fault, broken.clone(), |scene| {
            let (reader, output) = pipe(None).expect("a pipe");
            let reading = thread::spawn(move || {
                let mut reader = File::from(reader);
                reader.read_exact(&mut vec![0; bytes]).expect("so much comes");
            });
            let fed = scene.fed(|input| scene.between(input, output), IMAGE.stream.len());
            reading.join().expect("the reader has gone");
            fed.0
        });
    }
    if matches!(table.filter(), "shard-split" | "shard-merge") {
        for (point, bytes) in IMAGE.points.iter().copied() {
            // The input stalls there, so that nothing is written that would meet the fault.
            let is_in_marker =
                table.filter() == "shard-split" && ["in a marker", "in image_eof"].contains(&point);
            let fault = match is_in_marker {
                true => format!("gone {point}, which stalls and goes on"),
                false => format!("gone {point}, which stalls"),
            };
            table.cell("program after", &fault, broken.clone(), |scene| {
                let (reader, output) = pipe(None).expect("a pipe");
                let (gone, leave) = pipe(None).expect("a pipe");
                let reading = thread::spawn(move || read_until_told(reader, gone));
                let (running, feed) = scene.fed(|input| scene.between(input, output), bytes);
                settle(&running);
                drop(leave);
                reading.join().expect("the reader has gone");
                // Who has read half of a marker waits for the rest of it.
                if is_in_marker {
                    let _ = File::from(feed).write_all(&IMAGE.stream[bytes..]);
                } else {
                    scene.keep(feed);
                }
                running
            });
        }
    }
    table.cell("program after", "stalled, then SIGTERM", End::Killed(Signal::SIGTERM), |scene| {
        let (reader, output) = pipe(None).expect("a pipe");
        scene.keep(reader);
        let (input, feed) = pipe(None).expect("a pipe");
        let running = scene.between(input, output).start();
        thread::spawn(move || File::from(feed).write_all(&IMAGE.stream));
        settle(&running);
        running.signal(Signal::SIGTERM);
        running
    });
    table.cell("program after", "gone after image_eof", End::Success, |scene| {
        let length = IMAGE.stream.len();
        let (running, feed) = scene.fed(|input| scene.between(input, scene.collected()), length);
        drop(feed);
        whole(scene, running)
    });
    for (fault, commands) in INHERITED_SIGPIPE {
        table.cell("program after", fault, broken.clone(), |scene| {
            let (reader, output) = pipe(None).expect("a pipe");
            drop(reader);
            scene.fed(|input| scene.between_after(commands, input, output), IMAGE.stream.len()).0
        });
    }
}

/// Reads while there is something, until `gone` ends; what comes is thrown away.
pub(crate) fn read_until_told(reader: OwnedFd, gone: OwnedFd) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut reader = File::from(reader);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut fds = [
            PollFd::new(reader.as_fd(), PollFlags::POLLIN),
            PollFd::new(gone.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).expect("poll");
        if fds[1].any() == Some(true) {
            return;
        }
        let _ = reader.read(&mut buffer).expect("a pipe");
    }
}

pub(crate) fn disk(table: &mut Table) {
    let full = refused(format!("{}: No space left on device", output(table)));
    table.cell("disk", "/dev/full", full.clone(), |scene| {
        let output = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        scene.fed(|input| scene.between(input, output), IMAGE.stream.len()).0
    });
    let large = refused(format!("{}: File too large", output(table)));
    table.cell("disk", "larger than ulimit -f", large, |scene| {
        let output = File::create(scene.path("output")).expect("a file");
        scene.fed(|input| scene.between_after("ulimit -f 64", input, output), IMAGE.stream.len()).0
    });
    for (options, fault, cause) in [
        ("size=256k", "ENOSPC (tmpfs of 256 KiB)", "No space left on device"),
        ("usrquota,usrquota_block_hardlimit=256k", "EDQUOT (tmpfs with a quota)", "*uota exceeded"),
    ] {
        on_tmpfs(table, options, fault, |table, mounted| {
            let refused = refused(format!("{}: {cause}", output(table)));
            table.cell("disk", fault, refused, |scene| {
                let output = File::create(mounted.path.join("output")).expect("a file");
                scene.fed(|input| scene.between(input, output), IMAGE.stream.len()).0
            });
        });
        if table.filter() == "image-extract" {
            let fault = format!("{fault}, images directory");
            on_tmpfs(table, options, &fault, |table, mounted| {
                let images = mounted.path.clone();
                let message = format!("*/core-1.img: {cause}");
                table.cell("disk", &fault, refused(message), |scene| {
                    into(scene, &images, IMAGE.stream.len())
                });
                let left = fs::read_dir(&images).expect("the directory").count();
                assert_eq!(left, 0, "{fault}: something is left");
            });
        }
    }
    edquot_by_strace(table, EDQUOT, output(table), Some("output"), |scene, launcher| {
        let output = File::create(scene.path("output")).expect("a file");
        let between = |input: OwnedFd| scene.between_under(launcher, input, output);
        scene.fed(between, IMAGE.stream.len()).0
    });
    if table.filter() == "image-extract" {
        let fault = format!("{EDQUOT}, images directory");
        edquot_by_strace(table, &fault, "*/core-1.img", None, |scene, launcher| {
            let filter = scene.tagged(Filter::under(launcher, "image-extract"));
            let filter = filter.progress_apart().arg("-D").arg(scene.images());
            let extract = |input: OwnedFd| filter.stdin(input);
            scene.fed(extract, IMAGE.stream.len()).0
        });
        let fault = "no inodes (tmpfs of 2)";
        on_tmpfs(table, "nr_inodes=2", fault, |table, mounted| {
            let images = mounted.path.clone();
            table.cell("disk", fault, refused("*/core-1.img: No space left on device"), |scene| {
                into(scene, &images, IMAGE.stream.len())
            });
            assert_eq!(fs::read_dir(&images).expect("the directory").count(), 0, "{fault}");
        });
        let fault = "read-only";
        on_tmpfs(table, "ro", fault, |table, mounted| {
            let images = mounted.path.clone();
            table.cell("disk", fault, refused("*: Read-only file system"), |scene| {
                into(scene, &images, IMAGE.stream.len())
            });
        });
        table.cell("disk", "no such directory", refused("*: No such file or directory"), |scene| {
            into(scene, &scene.path("nowhere"), IMAGE.stream.len())
        });
    }
}

/// `image-extract -D images`, all of the image on its standard input.
fn into(scene: &Scene, images: &std::path::Path, bytes: usize) -> Running {
    let extract = |input: OwnedFd| tests::filters::extract(images).stdin(input);
    scene.fed(extract, bytes).0
}

/// The fault of the cells that have no other quota.
pub(crate) const EDQUOT: &str = "EDQUOT (injected by strace)";

/// A quota without a file system that has one, which few kernels can mount: strace lets moving
/// payload fail as the file system would, to the scene's file `output` or, without it, to any.
/// `act` starts the filter by the launcher.
pub(crate) fn edquot_by_strace(
    table: &mut Table,
    fault: &str,
    place: &str,
    output: Option<&str>,
    act: impl FnOnce(&Scene, &[&str]) -> Running,
) {
    if Command::new("strace").arg("-V").output().is_err() {
        return table.skip("disk", fault, "there is no strace");
    }
    table.cell("disk", fault, refused(format!("{place}: *uota exceeded")), |scene| {
        let path = output.map(|name| scene.path(name));
        let path = path.as_ref().map(|path| ["-P", path.to_str().expect("UTF-8")]);
        let words = ["strace", "-f", "-o", "/dev/null", "-e", "inject=splice:error=EDQUOT:when=2+"];
        let launcher: Vec<_> = words.into_iter().chain(path.into_iter().flatten()).collect();
        act(scene, &launcher)
    });
}

/// A file system in memory, which is unmounted in the end.
pub(crate) struct Mounted {
    pub(crate) path: std::path::PathBuf,
    _parent: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Does something with a tmpfs of these options, or says that it cannot be had.
pub(crate) fn on_tmpfs(
    table: &mut Table,
    options: &str,
    fault: &str,
    act: impl FnOnce(&mut Table, &Mounted),
) {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("tmpfs");
    fs::create_dir(&path).expect("a directory");
    let mounted = Mounted { path, _parent: parent };
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "fault-matrix"]).arg(&mounted.path);
    match mount.output() {
        Ok(output) if output.status.success() => act(table, &mounted),
        _ => table.skip("disk", fault, "a tmpfs like this cannot be mounted here"),
    }
}
