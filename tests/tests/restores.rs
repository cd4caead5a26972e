//! `image-serve` opposite a CRIU that asks in an order of its own, twice, for
//! what isn't there, or goes away.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};
use tests::criu::{RestoreClient, request};
use tests::filters;
use tests::random::Random;
use tests::stream::Writer;

const PAGES: usize = 3 << 20;

fn image() -> Vec<u8> {
    let writer = Writer::new().file("core-1.img", b"core").file("empty.img", b"");
    let writer = writer.file("pages-1.img", &pages()).file("inventory.img", b"all");
    writer.image_eof().finish()
}

fn pages() -> Vec<u8> {
    Random::new(7).bytes(PAGES)
}

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn is_empty(dir: &TempDir) -> bool {
    std::fs::read_dir(dir.path()).expect("the directory").next().is_none()
}

/// Reads a file that must be there.
fn read(client: &mut RestoreClient, name: &str) -> Vec<u8> {
    let content = client.read(name).expect("a reply");
    content.unwrap_or_else(|| panic!("{name} isn't served"))
}

#[test]
fn files_are_served_in_any_order_and_the_socket_is_gone_afterwards() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        assert_eq!(read(&mut client, "inventory.img"), b"all");
        assert!(read(&mut client, "pages-1.img") == pages(), "pages-1.img differs");
        assert_eq!(read(&mut client, "empty.img"), b"");
        assert_eq!(read(&mut client, "core-1.img"), b"core");
    });
    assert!(served.succeeded().stderr.is_empty(), "{:?}", served.stderr);
    assert!(is_empty(&dir), "the socket is still there");
}

#[test]
fn a_file_that_is_not_in_the_image_is_no_error() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        for name in ["missing.img", "../core-1.img", "", "pages-1.img\0"] {
            assert!(client.open(name).expect("a reply").is_none(), "{name:?} is served");
        }
        assert_eq!(read(&mut client, "inventory.img"), b"all");
    });
    served.succeeded();
}

#[test]
fn a_small_file_may_be_asked_for_twice() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        for _ in 0..3 {
            assert_eq!(read(&mut client, "inventory.img"), b"all");
            assert_eq!(read(&mut client, "core-1.img"), b"core");
        }
    });
    served.succeeded();
}

#[test]
fn a_small_file_may_be_opened_before_the_last_one_is_read() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        let mut open = ["inventory.img", "core-1.img"]
            .map(|name| client.open(name).expect("a reply").expect("the file is served"));
        let mut contents = [String::new(), String::new()];
        open[1].read_to_string(&mut contents[1]).expect("a pipe");
        open[0].read_to_string(&mut contents[0]).expect("a pipe");
        assert_eq!(contents, ["all", "core"]);
    });
    served.succeeded();
}

/// A mapping of huge pages reads only what it needs.
#[test]
fn a_pipe_that_is_closed_half_read_is_no_error() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        let mut file = client.open("pages-1.img").expect("a reply").expect("pages are served");
        let mut half = vec![0; PAGES / 2];
        file.read_exact(&mut half).expect("a pipe");
        assert!(half == pages()[..PAGES / 2], "pages-1.img differs");
        drop(file);
        assert_eq!(read(&mut client, "core-1.img"), b"core");
        assert_eq!(read(&mut client, "inventory.img"), b"all");
    });
    served.succeeded();
}

#[test]
fn a_client_that_talks_nonsense_is_refused() {
    let nonsense: [(&str, &[u8]); 3] = [
        ("an oversized request", &[0xff; 64]),
        ("an empty request", &[0, 0, 0, 0]),
        ("a request with a cut name", &[3, 0, 0, 0, 0x0a, 9, b'a']),
    ];
    for (case, bytes) in nonsense {
        let dir = directory();
        let served = filters::restore(dir.path(), &image(), |mut client| {
            let _ = client.send_garbage(bytes);
        });
        served.refused_with_a_place(case);
        assert!(is_empty(&dir), "{case}: the socket is still there");
    }
}

#[test]
fn a_client_that_is_cut_off_in_a_request_is_refused() {
    let dir = directory();
    let served = filters::restore(dir.path(), &image(), |mut client| {
        let request = request(b"inventory.img");
        client.send_garbage(&(request.len() as u32).to_le_bytes()).expect("serve reads");
        client.send_garbage(&request[..5]).expect("serve reads");
    });
    served.refused_with_a_place("cut off in a request");
    assert!(is_empty(&dir), "the socket is still there");
}

#[test]
fn a_signal_removes_the_socket_and_is_the_cause_of_death() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = directory();
        let serve = filters::start_serve(filters::serve(dir.path()), &image());
        serve.wait_for("socket-init");
        assert!(!is_empty(&dir), "no socket");
        serve.signal(signal);
        let status = serve.finish().status;
        assert_eq!(status.signal(), Some(signal as i32), "{status}");
        assert!(is_empty(&dir), "the socket is still there after {signal}");
    }
}

#[test]
fn a_restore_from_a_directory_with_a_long_path_works() {
    let parent = directory();
    let dir = parent.path().join("d".repeat(200));
    std::fs::create_dir(&dir).expect("a directory");
    let served = filters::restore(&dir, &image(), |mut client| {
        assert_eq!(read(&mut client, "inventory.img"), b"all");
    });
    served.succeeded();
}
