//! `criu-sock-capture` opposite a CRIU that behaves, dies, or talks nonsense.

use std::io::{IoSlice, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, vmsplice};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, pipe, request};
use tests::filters::{self, Capture};
use tests::malformed::bad_names;
use tests::pipeline::{Filter, Finished, collect_from};
use tests::random::Random;
use tests::stream::{looks_complete, read_stream};

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("the directory").next().is_none()
}

/// Runs a dump that goes wrong: it must be refused, and look so.
fn refused_dump(case: &str, dump: impl FnOnce(DumpClient)) -> Finished {
    let dir = directory();
    let captured = filters::dump(dir.path(), dump);
    captured.refused_with_a_place(case);
    assert!(!looks_complete(&captured.stdout), "{case}: the stream looks complete");
    assert!(is_empty(dir.path()), "{case}: the socket is still there");
    captured
}

#[test]
fn a_dump_without_its_inventory_is_refused() {
    refused_dump("hung up at once", drop);
    refused_dump("hung up after a file", |mut client| {
        client.send("core-1.img", b"core").expect("capture reads");
    });
    refused_dump("hung up after cpuinfo and a file", |mut client| {
        client.send("cpuinfo.img", b"cpu").expect("capture reads");
        client.send("core-1.img", b"core").expect("capture reads");
    });
}

#[test]
fn a_dump_whose_memory_went_elsewhere_is_refused() {
    let captured = refused_dump("no memory", |mut client| {
        client.send("mm-1.img", b"mm").expect("capture reads");
        // The refusal may come before the last byte.
        let _ = client.send("inventory.img", b"\x16\x31\x31\x58\x03\0\0\0abc");
    });
    let stderr = captured.stderr.join("\n");
    assert!(stderr.contains("no pages-N.img"), "{stderr}");
}

#[test]
fn a_criu_killed_in_the_middle_of_a_file_is_refused() {
    refused_dump("killed in a file", |mut client| {
        let mut pages = client.open("pages-1.img").expect("a pipe");
        pages.write_all(&Random::new(1).bytes(100_000)).expect("capture reads");
    });
    refused_dump("killed between request and pipe", |mut client| {
        client.send("core-1.img", b"core").expect("capture reads");
        client.request("inventory.img").expect("capture reads");
    });
    refused_dump("killed in a request", |mut client| {
        client.send("core-1.img", b"core").expect("capture reads");
        let request = request(b"inventory.img");
        client.send_garbage(&(request.len() as u32).to_le_bytes()).expect("capture reads");
        client.send_garbage(&request[..4]).expect("capture reads");
    });
    refused_dump("killed in a request's length", |mut client| {
        client.send_garbage(&[15, 0]).expect("capture reads");
    });
}

#[test]
fn a_criu_that_dies_at_any_step_of_its_dump_is_refused() {
    for steps in 0..8 {
        refused_dump(&format!("died after {steps} steps"), |client| {
            take_steps(client, steps);
        });
    }
}

/// The first steps of a dump, up to the pipe of `inventory.img`, which isn't sent.
fn take_steps(mut client: DumpClient, steps: usize) -> Option<()> {
    let mut steps = 0..steps;
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let mut core = std::fs::File::from(write_end);
    steps.next()?;
    client.request("core-1.img").expect("capture reads");
    steps.next()?;
    client.send_pipe(&read_end).expect("capture reads");
    drop(read_end);
    steps.next()?;
    core.write_all(b"half of it,").expect("capture reads");
    steps.next()?;
    let pages = client.open("pages-1.img").expect("a pipe");
    steps.next()?;
    core.write_all(b" the other half").expect("capture reads");
    drop(core);
    steps.next()?;
    drop(pages);
    steps.next()?;
    client.request("inventory.img").expect("capture reads");
    Some(())
}

#[test]
fn cpuinfo_alone_is_a_complete_dump() {
    let dir = directory();
    let captured = filters::dump(dir.path(), |mut client| {
        client.send("cpuinfo.img", b"cpu").expect("capture reads");
    });
    captured.succeeded();
    let files = read_stream(&captured.stdout).expect("a valid stream");
    assert_eq!(files.len(), 1);
    assert_eq!(files["cpuinfo.img"], b"cpu");
}

#[test]
fn a_client_that_talks_nonsense_is_refused() {
    let nonsense: [(&str, &[u8]); 5] = [
        ("an oversized request", &[0xff; 64]),
        ("a request of zeros", &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("an empty request", &[0, 0, 0, 0]),
        ("a request without a name", &[2, 0, 0, 0, 0x10, 1]),
        ("a request with a cut name", &[3, 0, 0, 0, 0x0a, 9, b'a']),
    ];
    for (case, bytes) in nonsense {
        refused_dump(case, |mut client| {
            // Refused before all was read: then the socket is closed already.
            let _ = client.send_garbage(bytes);
            assert!(client.was_hung_up_on(), "{case}: still connected");
        });
    }
}

#[test]
fn a_client_that_sends_no_pipe_is_refused() {
    refused_dump("a byte without a descriptor", |mut client| {
        client.request("core-1.img").expect("capture reads");
        client.send_garbage(&[0]).expect("capture reads");
        assert!(client.was_hung_up_on(), "still connected");
    });
}

#[test]
fn a_name_that_leaves_the_directory_is_refused() {
    for name in bad_names() {
        refused_dump(&format!("the name {name:?}"), |mut client| {
            // Refused with the request, or with the pipe that follows it.
            if let Ok(mut file) = client.open(&name) {
                let _ = file.write_all(b"out!");
            }
            let _ = client.send("inventory.img", b"all");
        });
    }
}

/// What CRIU left in a pipe is read though CRIU has gone.
#[test]
fn what_is_still_in_the_pipes_when_criu_hangs_up_is_captured() {
    let dir = directory();
    let pages = Random::new(2).bytes(300_000);
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    let mut pipe = client.open("pages-1.img").expect("a pipe");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    pipe.write_all(&pages).expect("capture still reads");
    drop(pipe);
    let captured = capture.finish();
    captured.succeeded();
    let files = read_stream(&captured.stdout).expect("a valid stream");
    assert!(files["pages-1.img"] == pages, "pages-1.img differs");
}

/// Pieces of a few bytes take a page slot each, and there are more of them than a new pipe has.
#[test]
fn an_inventory_in_many_pieces_is_whole() {
    const SLOTS: usize = 64;
    let body = Random::new(5).bytes(400);
    let length = (body.len() as u32).to_le_bytes();
    let inventory = [b"\x16\x31\x31\x58".as_slice(), &length, &body].concat();
    for cut in [0, 1] {
        let dir = directory();
        let sent = &inventory[..inventory.len() - cut];
        let captured = filters::dump(dir.path(), |mut client| {
            let (read_end, write_end) = pipe(Some(SLOTS * 4096)).expect("a pipe");
            for piece in sent.chunks(17) {
                let moved = vmsplice(&write_end, &[IoSlice::new(piece)], SpliceFFlags::empty());
                assert_eq!(moved.expect("room"), piece.len());
            }
            drop(write_end);
            client.request("inventory.img").expect("capture reads");
            client.send_pipe(&read_end).expect("capture reads");
        });
        if cut > 0 {
            captured.refused_with_a_place("cut short");
            assert!(captured.stderr[0].contains("cut short"), "{:?}", captured.stderr);
            continue;
        }
        captured.succeeded();
        let files = read_stream(&captured.stdout).expect("a valid stream");
        assert_eq!(files["inventory.img"], inventory);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_capture_in_an_error() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let capture = filters::capture(dir.path()).stdout(write_end).start();
    capture.wait_for("socket-init");
    drop(read_end);
    // It may be too late for the first step already.
    let dump = || {
        let mut client = DumpClient::connect(dir.path())?;
        let mut pages = client.open("pages-1.img")?;
        pages.write_all(&vec![1; 10 << 20])
    };
    assert!(dump().is_err(), "CRIU must learn of it");
    let finished = capture.finish();
    assert!(!finished.status.success(), "{}", finished.status);
    assert!(is_empty(dir.path()), "the socket is still there");
}

#[test]
fn a_signal_removes_the_socket_and_is_the_cause_of_death() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = directory();
        let capture = Capture::start(filters::capture(dir.path()));
        assert!(!is_empty(dir.path()), "no socket");
        capture.running.signal(signal);
        let captured = capture.finish();
        assert_eq!(captured.status.signal(), Some(signal as i32), "{}", captured.status);
        assert!(is_empty(dir.path()), "the socket is still there after {signal}");
        assert!(!looks_complete(&captured.stdout));
    }
}

#[test]
fn a_signal_in_the_middle_of_a_dump_leaves_no_complete_stream() {
    let dir = directory();
    let capture = Capture::start(filters::capture(dir.path()));
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    let mut pages = client.open("pages-1.img").expect("a pipe");
    pages.write_all(&[1; 10_000]).expect("capture reads");
    capture.running.wait_for("checkpoint-start");
    capture.running.signal(Signal::SIGTERM);
    let captured = capture.finish();
    assert_eq!(captured.status.signal(), Some(Signal::SIGTERM as i32), "{}", captured.status);
    assert!(!looks_complete(&captured.stdout));
    assert!(is_empty(dir.path()), "the socket is still there");
}

#[test]
fn the_socket_is_gone_after_a_dump() {
    let dir = directory();
    let captured = filters::dump(dir.path(), |mut client| {
        client.send("inventory.img", b"all").expect("capture reads");
    });
    captured.succeeded();
    assert!(is_empty(dir.path()), "the socket is still there");
}

/// A UNIX socket's path ends at 107 bytes; a directory's doesn't.
#[test]
fn a_dump_into_a_directory_with_a_long_path_works() {
    let parent = directory();
    let dir = parent.path().join("d".repeat(200));
    std::fs::create_dir(&dir).expect("a directory");
    let captured = filters::dump(&dir, |mut client| {
        client.send("inventory.img", b"all").expect("capture reads");
    });
    captured.succeeded();
    assert_eq!(read_stream(&captured.stdout).expect("valid")["inventory.img"], b"all");
    assert!(is_empty(&dir), "the socket is still there");
}

/// CRIU does not wait for its small files to be read: while the reader of the stream rests they
/// pile up, and those that can't be received yet wait in the socket.
#[test]
fn a_crowd_of_small_files_needs_few_descriptors() {
    const FILES: usize = 3000;
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let capture = Filter::after("ulimit -n 128", "criu-sock-capture").arg("-D").arg(dir.path());
    let capture = capture.stdout(write_end).start();
    capture.wait_for("socket-init");
    let mut client = DumpClient::connect(dir.path()).expect("the socket is there");
    let dump = thread::spawn(move || {
        for index in 0..FILES {
            client.send(&format!("core-{index}.img"), &[7; 300]).expect("capture reads");
        }
        client.send("inventory.img", b"all").expect("capture reads");
    });
    thread::sleep(Duration::from_millis(300));
    let stream = collect_from(read_end);
    capture.finish().succeeded();
    dump.join().expect("the dump is done");
    let files = read_stream(&stream.join().expect("the stream")).expect("a valid stream");
    assert_eq!(files.len(), FILES + 1);
}
