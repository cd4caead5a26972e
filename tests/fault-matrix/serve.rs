//! `image-serve`: CRIU.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use tests::criu::{RestoreClient, pipe, request};
use tests::pipeline::{Filter, Running};

use crate::scene::{IMAGE, Scene, settle};
use crate::table::{End, Table, refused};

/// Serves all of the image, `core-1.img` included.
fn start(scene: &Scene) -> Running {
    let serve = |input: OwnedFd| tests::filters::serve(&scene.images()).stdin(input);
    let (running, feed) = scene.fed(serve, IMAGE.stream.len());
    drop(feed);
    running.wait_for("socket-init");
    running
}

fn connect(scene: &Scene) -> RestoreClient {
    RestoreClient::connect(&scene.images()).expect("the socket is there")
}

/// How far CRIU gets.
const STEPS: [(&str, usize); 8] = [
    ("at byte 0", 0),
    ("in the length of a request", 1),
    ("in a request", 2),
    ("between reply and pipe", 3),
    ("before a payload", 4),
    ("in a payload", 5),
    ("between files", 6),
    ("with the reply unread", 7),
];

fn walk(scene: &Scene, steps: usize) -> (RestoreClient, Option<File>) {
    let mut client = connect(scene);
    let bytes = request(b"core-1.img");
    let length = (bytes.len() as u32).to_le_bytes();
    let open = |client: &mut RestoreClient| client.open("core-1.img").expect("a reply");
    let mut file = None;
    match steps {
        0 => {}
        1 => client.send_garbage(&length[..2]).expect("serve reads"),
        2 => {
            client.send_garbage(&length).expect("serve reads");
            client.send_garbage(&bytes[..3]).expect("serve reads");
        }
        3 => assert!(client.ask("core-1.img").expect("a reply")),
        4 => file = open(&mut client),
        5 => {
            let mut core = open(&mut client).expect("it is served");
            core.read_exact(&mut vec![0; 1 << 20]).expect("a pipe");
            file = Some(core);
        }
        6 => drop(client.read("core-1.img").expect("a reply")),
        _ => {
            client.send_garbage(&length).expect("serve reads");
            client.send_garbage(&bytes).expect("serve reads");
        }
    }
    (client, file)
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
            4 => "CRIU: core-1.img: closed unread: CRIU has failed*",
            _ => "CRIU: hung up without asking for inventory.img: nothing was restored",
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
    table.cell("CRIU", "closes a pipe unread", refused("CRIU: core-1.img: closed*"), |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        client.read("inventory.img").expect("a reply");
        drop(client.open("core-1.img").expect("a reply"));
        running.wait_for("unread core-1.img");
        scene.keep(client);
        running
    });
    table.cell("CRIU", "closes a pipe half read", End::Success, |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        client.read("inventory.img").expect("a reply");
        let mut core = client.open("core-1.img").expect("a reply").expect("it is served");
        core.read_exact(&mut [0; 1000]).expect("a pipe");
        running
    });
    table.cell(
        "CRIU",
        "asks for a large file twice",
        refused("CRIU: core-1.img: asked for again*"),
        |scene| {
            let running = start(scene);
            let mut client = connect(scene);
            client.read("inventory.img").expect("a reply");
            client.read("core-1.img").expect("a reply").expect("the file");
            assert!(client.read("core-1.img").expect("a reply").is_none(), "it is gone");
            running
        },
    );
    let too_many = refused("CRIU: too many files open at once (see ulimit -n)");
    table.cell("CRIU", "opens more files than ulimit -n", too_many, |scene| {
        let path = scene.path("image");
        fs::write(&path, &IMAGE.stream).expect("a file");
        let serve = scene.tagged(Filter::after("ulimit -n 32", "image-serve")).progress_apart();
        let stdin = File::open(path).expect("a file");
        let running = serve.arg("-D").arg(scene.images()).stdin(stdin).start();
        running.wait_for("socket-init");
        let mut client = connect(scene);
        let files: Vec<_> = (0..64).map_while(|_| client.open("core-1.img").ok()).collect();
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
    let nonsense = refused("CRIU: a request of 4294967295 bytes");
    table.cell("CRIU", "sends nonsense, with a file open", nonsense, |scene| {
        let running = start(scene);
        let (mut client, core) = walk(scene, 5);
        let _ = client.send_garbage(&[0xff; 64]);
        scene.keep((client, core));
        running
    });
    table.cell(
        "CRIU",
        "sends no pipe",
        refused("CRIU: core-1.img: came without a pipe"),
        |scene| {
            let running = start(scene);
            let mut client = connect(scene);
            client.ask("core-1.img").expect("a reply");
            let _ = client.send_pipe(File::open("/dev/null").expect("/dev/null"));
            scene.keep(client);
            running
        },
    );
    table.cell("CRIU", "sends the wrong end of a pipe", refused("CRIU: core-1.img: *"), |scene| {
        let running = start(scene);
        let mut client = connect(scene);
        client.ask("core-1.img").expect("a reply");
        let (reader, writer) = pipe(None).expect("a pipe");
        let _ = client.send_pipe(reader);
        scene.keep((client, writer));
        running
    });
}
