//! A snapshot's process runs on when every filter has exited with status 0. What it then writes
//! must not reach the image, though CRIU puts its memory into the pipes by reference.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::fcntl::{SpliceFFlags, vmsplice};
use tempfile::tempdir;
use tests::criu::{DumpClient, pipe};
use tests::filters::{self, split_to};
use tests::pipeline::{Filter, collect_from};
use tests::stream::read_stream;

const PAGES: usize = 32;
const BYTES: usize = PAGES * 4096;

/// What the image is read from in the end, and what the last filter writes.
fn ends(kind: &str) -> (OwnedFd, OwnedFd) {
    match kind {
        "unix" => UnixStream::pair().map(|(a, b)| (a.into(), b.into())).expect("a pair"),
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let near = TcpStream::connect(listener.local_addr().expect("an address"));
            (listener.accept().expect("a connection").0.into(), near.expect("a connection").into())
        }
        "pipe" => pipe(None).expect("a pipe"),
        other => panic!("no such kind: {other}"),
    }
}

/// The filters behind each other; the last writes to `far`.
fn pipeline(through: &str, dir: &std::path::Path, far: OwnedFd) -> Vec<Filter> {
    let capture = filters::capture(dir).arg("--end-at-inventory");
    let between = || pipe(None).expect("a pipe");
    match through {
        "capture" => vec![capture.stdout(far)],
        "split" => {
            let (read, write) = between();
            vec![capture.stdout(write), split_to([far]).stdin(read)]
        }
        "merge" => {
            let ((read, write), (shard, to)) = (between(), between());
            let merge = filters::merge_from([shard]).stdout(far);
            vec![capture.stdout(write), split_to([to]).stdin(read), merge]
        }
        "extract" => {
            let (read, write) = between();
            let extract = filters::extract(dir).args(["-e", "pages-1.img:20"]).fd(20, far);
            vec![capture.stdout(write), extract.stdin(read)]
        }
        other => panic!("no such pipeline: {other}"),
    }
}

/// What the reader gets of the memory of a process that is resumed, and writes, as soon as all
/// filters have succeeded.
fn received(through: &str, kind: &str) -> Vec<u8> {
    let dir = tempdir().expect("a directory");
    let (near, far) = ends(kind);
    // Nobody ends before a pipe is empty; of a socket all may be read later.
    let at_once = (kind == "pipe").then(|| collect_from(near.try_clone().expect("a descriptor")));
    let filters: Vec<_> =
        pipeline(through, dir.path(), far).into_iter().map(Filter::start).collect();
    filters[0].wait_for("socket-init");
    let mut memory = vec![b'A'; BYTES];
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    let pages = client.open_sized("pages-1.img", Some(1 << 20)).expect("a pipe");
    let put = vmsplice(&pages, &[IoSlice::new(&memory)], SpliceFFlags::empty());
    assert_eq!(put, Ok(BYTES));
    drop(pages);
    client.send("inventory.img", b"all").expect("capture reads");
    filters.into_iter().for_each(|filter| _ = filter.finish().succeeded());
    memory.fill(b'B');
    let mut stream = Vec::new();
    match at_once {
        Some(collect) => stream = collect.join().expect("the stream"),
        None => _ = File::from(near).read_to_end(&mut stream).expect("the stream"),
    }
    if through == "extract" {
        stream
    } else {
        read_stream(&stream).expect("an image").remove("pages-1.img").expect("a file")
    }
}

#[test]
fn what_a_process_writes_later_reaches_no_reader() {
    // At once: a filter gives the peer of a socket some time to read.
    thread::scope(|scope| {
        for through in ["capture", "split", "merge", "extract"] {
            for kind in ["unix", "tcp", "pipe"] {
                scope.spawn(move || {
                    let pages = received(through, kind);
                    assert_eq!(pages.len(), BYTES);
                    let later = pages.iter().filter(|byte| **byte == b'B').count();
                    assert_eq!(later, 0, "{through} to {kind}: {later} bytes of a later moment");
                });
            }
        }
    });
}
