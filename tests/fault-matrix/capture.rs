//! `criu-sock-capture`: CRIU, the reader of the stream, the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread;

use nix::sys::signal::Signal;
use tests::criu::{DumpClient, pipe, request};
use tests::pipeline::Running;

use crate::scene::{Scene, settle};
use crate::streams::{EDQUOT, INHERITED_SIGPIPE, edquot_by_strace, on_tmpfs, read_until_told};
use crate::table::{End, Table, refused};

/// Waits for CRIU, with the stream going there, and an external file that is empty.
fn start_to(scene: &Scene, output: OwnedFd) -> Running {
    let empty = File::open("/dev/null").expect("/dev/null");
    let running = scene.between(empty, output).start();
    running.wait_for("socket-init");
    running
}

/// Sends more than the output takes.
fn overfill(scene: &Scene, running: Running) -> Running {
    running.wait_for("socket-init");
    let mut client = connect(scene);
    let mut pages = client.open("pages-1.img").expect("a pipe");
    let _ = pages.write_all(&vec![1; 1 << 20]);
    scene.keep((client, pages));
    running
}

fn start(scene: &Scene) -> Running {
    start_to(scene, scene.collected())
}

fn connect(scene: &Scene) -> DumpClient {
    DumpClient::connect(&scene.images()).expect("the socket is there")
}

/// How far CRIU gets.
const STEPS: [(&str, usize); 9] = [
    ("at byte 0", 0),
    ("in the length of a request", 1),
    ("in a request", 2),
    ("between request and pipe", 3),
    ("before a payload", 4),
    ("in a payload", 5),
    ("between files", 6),
    ("before inventory.img", 7),
    ("in inventory.img", 8),
];

/// What CRIU has open after that many steps.
fn walk(scene: &Scene, steps: usize) -> (DumpClient, Vec<File>) {
    let mut client = connect(scene);
    let bytes = request(b"core-1.img");
    let length = (bytes.len() as u32).to_le_bytes();
    match steps {
        0 => {}
        1 => client.send_garbage(&length[..2]).expect("capture reads"),
        2 => {
            client.send_garbage(&length).expect("capture reads");
            client.send_garbage(&bytes[..3]).expect("capture reads");
        }
        3 => client.request("core-1.img").expect("capture reads"),
        4 => {
            let core = client.open("core-1.img").expect("a pipe");
            return (client, vec![core]);
        }
        5 => {
            let mut core = client.open("core-1.img").expect("a pipe");
            core.write_all(&[1; 100_000]).expect("capture reads");
            return (client, vec![core]);
        }
        6 => client.send("core-1.img", &[1; 100_000]).expect("capture reads"),
        7 => {
            client.send("core-1.img", &[1; 100_000]).expect("capture reads");
            client.request("inventory.img").expect("capture reads");
        }
        _ => {
            client.send("core-1.img", &[1; 100_000]).expect("capture reads");
            let mut inventory = client.open("inventory.img").expect("a pipe");
            inventory.write_all(b"\x16\x31\x31\x58\x09\0\0\0abc").expect("a pipe");
            return (client, vec![inventory]);
        }
    }
    (client, Vec::new())
}

pub(crate) fn criu(table: &mut Table) {
    table.cell("CRIU", "never comes, then SIGTERM", End::Killed(Signal::SIGTERM), |scene| {
        let running = start(scene);
        running.signal(Signal::SIGTERM);
        running
    });
    for (point, steps) in STEPS {
        let message = match steps {
            1..=3 | 7 => "CRIU: hung up within a request",
            8 => "CRIU: inventory.img is cut short*",
            _ => "CRIU: hung up before inventory.img*",
        };
        table.cell("CRIU", &format!("gone {point}"), refused(message), |scene| {
            let running = start(scene);
            let criu = walk(scene, steps);
            settle(&running);
            drop(criu);
            running
        });
        let killed = End::Killed(Signal::SIGTERM);
        table.cell("CRIU", &format!("stalled {point}, then SIGTERM"), killed, |scene| {
            let running = start(scene);
            scene.keep(walk(scene, steps));
            settle(&running);
            running.signal(Signal::SIGTERM);
            running
        });
    }
    table.cell("CRIU", "gone after the image", End::Success, |scene| {
        let running = start(scene);
        connect(scene).send("inventory.img", b"all").expect("capture reads");
        running
    });
    table.cell("CRIU", "reads no more", End::Success, |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        client.stop_reading();
        client.send("core-1.img", b"core").expect("capture reads");
        client.send("inventory.img", b"all").expect("capture reads");
        running
    });
    let too_many = refused("CRIU: too many files open at once (see ulimit -n)");
    table.cell("CRIU", "opens more files than ulimit -n", too_many, |scene| {
        let empty = File::open("/dev/null").expect("/dev/null");
        let running = scene.between_after("ulimit -n 32", empty, scene.collected()).start();
        running.wait_for("socket-init");
        let mut client = connect(scene);
        let open = |number| client.open(&format!("core-{number}.img")).ok();
        let files: Vec<_> = (0..64).map_while(open).collect();
        scene.keep((client, files));
        running
    });
    table.cell("CRIU", "sends nonsense", refused("CRIU: a request of 4294967295 bytes"), |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        let _ = client.send_garbage(&[0xff; 64]);
        scene.keep(client);
        running
    });
    table.cell(
        "CRIU",
        "sends a name that is a path",
        refused("CRIU: file name '../x' is not*"),
        |scene| {
            let running = start(scene);
            let mut client = connect(scene);
            let _ = client.request("../x");
            scene.keep(client);
            running
        },
    );
    table.cell(
        "CRIU",
        "sends no pipe",
        refused("CRIU: core-1.img: came without a pipe"),
        |scene| {
            let running = start(scene);
            let mut client = connect(scene);
            client.request("core-1.img").expect("capture reads");
            let _ = client.send_pipe(File::open("/dev/null").expect("/dev/null"));
            scene.keep(client);
            running
        },
    );
    table.cell(
        "CRIU",
        "sends a byte without its pipe",
        refused("CRIU: a request without its pipe"),
        |scene| {
            let running = start(scene);
            let mut client = connect(scene);
            client.request("core-1.img").expect("capture reads");
            let _ = client.send_garbage(&[0]);
            scene.keep(client);
            running
        },
    );
    let no_pipe = refused("CRIU: core-1.img: came without a pipe");
    table.cell("CRIU", "sends the wrong end of a pipe", no_pipe, |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        client.request("core-1.img").expect("capture reads");
        let (reader, writer) = pipe(None).expect("a pipe");
        let _ = client.send_pipe(writer);
        scene.keep((client, reader));
        running
    });
}

pub(crate) fn reader(table: &mut Table) {
    let broken = || refused("stdout: Broken pipe");
    table.cell("program after", "gone before start", broken(), |scene| {
        let (reader, output) = pipe(None).expect("a pipe");
        drop(reader);
        let empty = File::open("/dev/null").expect("/dev/null");
        scene.between(empty, output).start()
    });
    for (point, steps) in STEPS {
        table.cell("program after", &format!("gone, CRIU {point}"), broken(), |scene| {
            let (reader, output) = pipe(None).expect("a pipe");
            let (gone, leave) = pipe(None).expect("a pipe");
            let reading = thread::spawn(move || read_until_told(reader, gone));
            let running = start_to(scene, output);
            scene.keep(walk(scene, steps));
            settle(&running);
            drop(leave);
            reading.join().expect("the reader has gone");
            running
        });
    }
    table.cell("program after", "stalled, then SIGTERM", End::Killed(Signal::SIGTERM), |scene| {
        let (reader, output) = pipe(None).expect("a pipe");
        scene.keep(reader);
        let running = start_to(scene, output);
        let (client, core) = walk(scene, 5);
        let [mut core] = <[File; 1]>::try_from(core).expect("one file");
        thread::spawn(move || core.write_all(&vec![1; 20 << 20]));
        scene.keep(client);
        settle(&running);
        running.signal(Signal::SIGTERM);
        running
    });
    table.cell("program after", "gone after image_eof", End::Success, |scene| {
        let (reader, output) = pipe(None).expect("a pipe");
        let running = start_to(scene, output);
        connect(scene).send("inventory.img", b"all").expect("capture reads");
        let mut stream = Vec::new();
        File::from(reader).read_to_end(&mut stream).expect("a pipe");
        running
    });
    let full = || refused("stdout: No space left on device");
    table.cell("disk", "/dev/full", full(), |scene| {
        let output = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        // The end of the external file is enough.
        start_to(scene, output.into())
    });
    for (options, fault, cause) in [
        ("size=64k", "ENOSPC (tmpfs of 64 KiB)", "No space left on device"),
        ("usrquota,usrquota_block_hardlimit=64k", "EDQUOT (tmpfs with a quota)", "*uota exceeded"),
    ] {
        on_tmpfs(table, options, fault, |table, mounted| {
            table.cell("disk", fault, refused(format!("stdout: {cause}")), |scene| {
                let output = File::create(mounted.path.join("output")).expect("a file");
                overfill(scene, start_to(scene, output.into()))
            });
        });
    }
    edquot_by_strace(table, EDQUOT, "stdout", Some("output"), |scene, launcher| {
        let output = File::create(scene.path("output")).expect("a file");
        let empty = File::open("/dev/null").expect("/dev/null");
        overfill(scene, scene.between_under(launcher, empty, output).start())
    });
    table.cell("disk", "larger than ulimit -f", refused("stdout: File too large"), |scene| {
        let output = File::create(scene.path("output")).expect("a file");
        let empty = File::open("/dev/null").expect("/dev/null");
        overfill(scene, scene.between_after("ulimit -f 64", empty, output).start())
    });
    for (fault, commands) in INHERITED_SIGPIPE {
        table.cell("program after", fault, broken(), |scene| {
            let (reader, output) = pipe(None).expect("a pipe");
            drop(reader);
            let empty = File::open("/dev/null").expect("/dev/null");
            scene.between_after(commands, empty, output).start()
        });
    }
}

pub(crate) fn places(table: &mut Table) {
    let alone = |scene: &Scene| {
        let empty = File::open("/dev/null").expect("/dev/null");
        scene.between(empty, scene.collected()).start()
    };
    table.cell("disk", "no such directory", refused("*: No such file or directory"), |scene| {
        fs::remove_dir(scene.images()).expect("it is empty");
        alone(scene)
    });
    on_tmpfs(table, "ro", "directory is read-only", |table, mounted| {
        table.cell(
            "disk",
            "directory is read-only",
            refused("*: Read-only file system"),
            |scene| tests::filters::capture(&mounted.path).stdout(scene.collected()).start(),
        );
    });
    on_tmpfs(table, "nr_inodes=1", "no inodes for the socket", |table, mounted| {
        let full = refused("*: No space left on device");
        table.cell("disk", "no inodes for the socket", full, |scene| {
            tests::filters::capture(&mounted.path).stdout(scene.collected()).start()
        });
    });
    table.cell("disk", "directory goes while it waits", End::Killed(Signal::SIGTERM), |scene| {
        let running = start(scene);
        fs::remove_dir_all(scene.images()).expect("the directory");
        running.signal(Signal::SIGTERM);
        running
    });
}
