//! The stand-in for CRIU and the reference reader, proved against fakes: what
//! the other tests rest on.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tests::criu::{DumpClient, RestoreClient};
use tests::malformed;
use tests::random::Random;
use tests::stream::{Body, Files, LONGEST_MARKER, Writer};
use tests::stream::{deal, looks_complete, read_shards, read_stream};

#[test]
fn the_reader_understands_what_the_writer_writes() {
    let expected = Files::from([
        ("pages-1.img".into(), b"some pages and more".to_vec()),
        ("pagemap-7.img".into(), b"a map".to_vec()),
        ("empty.img".into(), Vec::new()),
        ("inventory.img".into(), b"everything".to_vec()),
    ]);
    let stream = malformed::small_stream();
    assert_eq!(read_stream(&stream).as_ref(), Ok(&expected));
    assert!(looks_complete(&stream));
    let mut random = Random::new(1);
    for count in 1..=8 {
        let shards = deal(&stream, count, |_| random.below(count));
        assert_eq!(read_shards(&shards).as_ref(), Ok(&expected), "{count} shards");
    }
}

#[test]
fn the_reader_skips_fields_that_it_does_not_know() {
    let name = Body::Filename(b"a.img".to_vec());
    let padded = Writer::new().padded_marker(&name, LONGEST_MARKER);
    let stream = padded.data(b"x").file_eof().image_eof().finish();
    assert_eq!(read_stream(&stream).expect("valid")["a.img"], b"x");
}

#[test]
fn the_reader_takes_the_later_of_two_files_with_one_name() {
    let stream = Writer::new().file("a", b"old").file("a", b"new").image_eof().finish();
    assert_eq!(read_stream(&stream).expect("valid")["a"], b"new");
}

#[test]
fn the_reader_refuses_every_malformed_stream() {
    for (case, stream) in malformed::streams() {
        assert!(read_stream(&stream).is_err(), "{case}");
    }
    for (case, shards) in malformed::shard_sets() {
        assert!(read_shards(&shards).is_err(), "{case}");
    }
    let stream = malformed::small_stream();
    for cut in 0..stream.len() {
        assert!(read_stream(&stream[..cut]).is_err(), "cut after {cut} bytes");
        assert!(!looks_complete(&stream[..cut]), "cut after {cut} bytes");
    }
}

#[test]
fn the_reader_reads_the_peer_s_own_images() {
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/peer");
    let read = |name: &str| std::fs::read(peer.join(name)).expect("the peer's image");
    let one = read_stream(&read("one.img")).expect("one shard");
    let three = read_shards(&["three-0.img", "three-1.img", "three-2.img"].map(read));
    assert_eq!(one.len(), 44);
    assert!(one == three.expect("three shards"), "the images differ");
}

#[test]
fn a_dump_sends_requests_and_pipes_as_criu_does() {
    let (dir, listener) = fake_streamer("streamer-capture.sock");
    let streamer = thread::spawn(move || {
        let mut socket = listener.accept().expect("a client").0;
        [(); 2].map(|()| {
            let name = receive_request(&mut socket);
            let mut content = Vec::new();
            receive_pipe(&socket).read_to_end(&mut content).expect("a pipe to read");
            (name, content)
        })
    });
    let mut client = DumpClient::connect(dir.path()).expect("the fake listens");
    let long_name = "n".repeat(255);
    let mut pages = client.open("pages-1.img").expect("a pipe");
    let mut pagemap = client.open(&long_name).expect("a second pipe");
    pagemap.write_all(b"map").expect("room");
    drop(pagemap);
    pages.write_all(b"pages").expect("room");
    drop(pages);
    let received = streamer.join().expect("the fake is content");
    assert_eq!(received[0], ("pages-1.img".into(), b"pages".to_vec()));
    assert_eq!(received[1], (long_name, b"map".to_vec()));
}

#[test]
fn a_restore_asks_and_takes_what_exists() {
    let (dir, listener) = fake_streamer("streamer-serve.sock");
    let streamer = thread::spawn(move || {
        let mut socket = listener.accept().expect("a client").0;
        assert_eq!(receive_request(&mut socket), "missing.img");
        socket.write_all(&[2, 0, 0, 0, 0x08, 0]).expect("a listening client");
        assert_eq!(receive_request(&mut socket), "inventory.img");
        socket.write_all(&[2, 0, 0, 0, 0x08, 1]).expect("a listening client");
        receive_pipe(&socket).write_all(b"all").expect("a pipe to write");
    });
    let mut client = RestoreClient::connect(dir.path()).expect("the fake listens");
    assert_eq!(client.read("missing.img").expect("a reply"), None);
    assert_eq!(client.read("inventory.img").expect("a reply").as_deref(), Some(&b"all"[..]));
    streamer.join().expect("the fake is content");
}

/// A listening socket in a directory whose path no socket address can hold.
fn fake_streamer(socket: &str) -> (tempfile::TempDir, UnixListener) {
    let dir = tempfile::Builder::new().prefix(&"d".repeat(150)).tempdir().expect("a directory");
    let open = File::open(dir.path()).expect("the directory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(socket);
    let listener = UnixListener::bind(path).expect("a socket");
    (dir, listener)
}

fn receive_request(socket: &mut UnixStream) -> String {
    let mut length = [0; 4];
    socket.read_exact(&mut length).expect("a length");
    let mut protobuf = vec![0; u32::from_le_bytes(length) as usize];
    socket.read_exact(&mut protobuf).expect("a request");
    let request: Request = prost::Message::decode(&protobuf[..]).expect("a request");
    request.filename
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, required, tag = "1")]
    filename: String,
}

/// The pipe that comes with the next byte.
fn receive_pipe(socket: &UnixStream) -> File {
    let mut byte = [0; 1];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), flags);
    let message = message.expect("a byte");
    assert_eq!(message.bytes, 1, "one byte and no more");
    let fd = match message.cmsgs().expect("a descriptor").next() {
        Some(ControlMessageOwned::ScmRights(fds)) => fds[0],
        other => panic!("{other:?} instead of a descriptor"),
    };
    // Opened anew by its name in /proc, as taking a raw descriptor is unsafe.
    let pipe = reopen(fd);
    nix::unistd::close(fd).expect("the descriptor is ours");
    pipe
}

fn reopen(fd: RawFd) -> File {
    let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let writable = flags.lines().any(|line| line.starts_with("flags:") && line.ends_with('1'));
    let path = format!("/proc/self/fd/{fd}");
    File::options().read(!writable).write(writable).open(path).expect("the pipe")
}
