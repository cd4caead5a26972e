//! A file has one part in a filter, by whatever names and descriptors it is given: what is written
//! to it twice, or read from it meanwhile, would be lost.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::{TempDir, tempdir};
use tests::criu::DumpClient;
use tests::filters::Capture;
use tests::pipeline::{Filter, collect_from, write_until_refused};
use tests::stream::{Writer, read_stream};

fn image() -> Vec<u8> {
    Writer::new().file("pages-1.img", b"pages").file("inventory.img", b"all").image_eof().finish()
}

/// `image`, a link to it, another name of it, a FIFO with two names, and an empty directory.
fn directory() -> TempDir {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("image"), image()).expect("a file");
    std::os::unix::fs::symlink("image", path("link")).expect("a link");
    fs::hard_link(path("image"), path("hard")).expect("a link");
    mkfifo(&path("fifo"), Mode::S_IRWXU).expect("a FIFO");
    fs::hard_link(path("fifo"), path("fifo2")).expect("a link");
    fs::create_dir(path("d")).expect("a directory");
    dir
}

/// Starts a filter with these redirections of a shell.
fn filter(dir: &Path, redirections: &str, name: &str, arguments: &str) -> Filter {
    let commands = format!("exec {redirections}");
    Filter::after(&commands, name).current_dir(dir).args(arguments.split_whitespace())
}

#[test]
fn a_file_with_two_parts_is_wrong_usage() {
    let cases = [
        // Descriptors and operands, for writing.
        (
            "shard-split",
            "-s 4 out out2",
            "<image 4>out",
            "shard 1 (out): the same file as shard 0 (fd 4)",
        ),
        (
            "shard-split",
            "-s 4 out2 link2",
            "<image 4>new; ln -s new link2",
            "shard 2 (link2): the same file as shard 0 (fd 4)",
        ),
        (
            "shard-split",
            "-s 4 -p 5",
            "<image 4>out 5>>out",
            "progress (fd 5): the same file as shard 0 (fd 4)",
        ),
        (
            "shard-split",
            "out",
            "<image >/dev/null 2>>out",
            "shard 0 (out): the same file as stderr",
        ),
        (
            "shard-split",
            "-p 5 out",
            "<image 5>out",
            "shard 0 (out): the same file as progress (fd 5)",
        ),
        (
            "shard-split",
            "link hard",
            "</dev/null",
            "shard 1 (hard): the same file as shard 0 (link)",
        ),
        ("shard-split", "fifo fifo2", "<image", "shard 1 (fifo2): the same file as shard 0 (fifo)"),
        (
            "shard-split",
            "-s 4 fifo2",
            "<image 4<>fifo",
            "shard 1 (fifo2): the same file as shard 0 (fd 4)",
        ),
        (
            "shard-split",
            "a.img d/../a.img",
            "<image",
            "shard 1 (d/../a.img): the same file as shard 0 (a.img)",
        ),
        (
            "shard-split",
            "-s 4 /dev/fd/4",
            "<image 4>out",
            "shard 1 (/dev/fd/4): the same file as shard 0 (fd 4)",
        ),
        // What is read is not written.
        ("shard-split", "image", "<image", "shard 0 (image): the same file as stdin"),
        ("shard-split", "link a.img", "<hard", "shard 0 (link): the same file as stdin"),
        ("shard-split", "-s 4", "<image 4>>hard", "shard 0 (fd 4): the same file as stdin"),
        (
            "shard-split",
            "-p 4",
            "<image 4>>hard >/dev/null",
            "progress (fd 4): the same file as stdin",
        ),
        ("shard-merge", "image", ">>hard", "shard 0 (image): the same file as stdout"),
        (
            "shard-merge",
            "-s 4,5",
            "4<image 5<link >/dev/null",
            "shard 1 (fd 5): the same file as shard 0 (fd 4)",
        ),
        (
            "shard-merge",
            "image link",
            ">/dev/null",
            "shard 1 (link): the same file as shard 0 (image)",
        ),
        (
            "shard-merge",
            "-s 4 hard",
            "4<image >/dev/null",
            "shard 1 (hard): the same file as shard 0 (fd 4)",
        ),
        ("shard-merge", "image", ">out 2>&1", "stdout: the same file as stderr"),
        ("criu-sock-capture", "-D d", ">out 2>&1", "stdout: the same file as stderr"),
        (
            "criu-sock-capture",
            "-D d -e a:4 -e b:5",
            ">out 4<image 5<link",
            "external file b (fd 5): the same file as external file a (fd 4)",
        ),
        (
            "criu-sock-capture",
            "-D d -e a:4",
            ">>image 4<hard",
            "external file a (fd 4): the same file as stdout",
        ),
        (
            "image-serve",
            "-D d -e pages-1.img:4",
            "<image 4>>hard",
            "external file pages-1.img (fd 4): the same file as stdin",
        ),
        (
            "image-serve",
            "-D d -e pages-1.img:4 -e b:5",
            "<image 4>out 5>>out",
            "external file b (fd 5): the same file as external file pages-1.img (fd 4)",
        ),
        (
            "image-extract",
            "-D d -e pages-1.img:4",
            "<image 4>>link",
            "external file pages-1.img (fd 4): the same file as stdin",
        ),
        (
            "image-extract",
            "-D d -e pages-1.img:4 -p 5",
            "<image 4>out 5>>out",
            "external file pages-1.img (fd 4): the same file as progress (fd 5)",
        ),
        ("image-extract", "--list", "<image >>hard", "stdin: the same file as stdout"),
    ];
    for (name, arguments, redirections, said) in cases {
        let dir = directory();
        let case = format!("{name} {arguments} {redirections}");
        let finished = filter(dir.path(), redirections, name, arguments).start().finish();
        assert_eq!(finished.status.code(), Some(2), "{case}: {:?}", finished.stderr);
        let elsewhere = fs::read_to_string(dir.path().join("out")).unwrap_or_default();
        let message = finished.stderr.first().cloned().unwrap_or_else(|| elsewhere.trim().into());
        assert_eq!(message, format!("{name}: {said}"), "{case}");
        assert!(
            fs::read(dir.path().join("image")).expect("it") == image(),
            "{case}: it is spoiled"
        );
        assert_eq!(fs::read_dir(dir.path().join("d")).expect("d").count(), 0, "{case}");
    }
}

#[test]
fn what_does_not_spoil_anything_is_allowed() {
    let cases = [
        ("shard-split", "-s 4,5 -p 6", "<image 4>/dev/null 5>/dev/null 6>/dev/null"),
        ("shard-split", "/dev/null /dev/null", "<image"),
        ("shard-split", "a.img -p 3", "<image 3>&2"),
        ("shard-merge", "image", "</dev/null >/dev/null 2>&1"),
        ("image-extract", "--list", "<image >out 2>&1"),
        ("image-extract", "-D d", "<image >out 2>&1"),
        ("image-extract", "-D d -e pages-1.img:4", "<image 4>d/fs.tar"),
    ];
    for (name, arguments, redirections) in cases {
        let dir = directory();
        let finished = filter(dir.path(), redirections, name, arguments).start().finish();
        assert!(
            finished.status.success(),
            "{name} {arguments} {redirections}: {:?}",
            finished.stderr
        );
    }
}

/// As inetd and socat give it.
#[test]
fn a_stream_may_come_from_a_socket_and_go_back_there() {
    let (far, near) = UnixStream::pair().expect("a pair");
    let (feed, near): (OwnedFd, OwnedFd) = (far.try_clone().expect("a socket").into(), near.into());
    let merge = Filter::new("shard-merge").progress_apart();
    let merge = merge.stdin(near.try_clone().expect("a socket")).stdout(near).start();
    let feeding = thread::spawn(move || write_until_refused(feed, &image()));
    feeding.join().expect("it is fed");
    far.shutdown(std::net::Shutdown::Write).expect("the end");
    let merged = collect_from(far).join().expect("the stream");
    merge.finish().succeeded();
    assert_eq!(read_stream(&merged), read_stream(&image()));
}

#[test]
fn a_file_of_the_image_replaces_nothing_that_is_at_work() {
    let cases = [
        (
            "pages-1.img:4",
            "<image 4>d/inventory.img",
            "d/inventory.img: the same file as external file pages-1.img (fd 4)",
        ),
        (
            "pages-1.img:4",
            "<image 4>out; mkfifo d/inventory.img; exec 4<>d/inventory.img",
            "d/inventory.img: the same file as external file pages-1.img (fd 4)",
        ),
        (
            "pages-1.img:4",
            "4>out; cp image d/inventory.img; exec <d/inventory.img",
            "d/inventory.img: the same file as stdin",
        ),
    ];
    for (external, redirections, said) in cases {
        let dir = directory();
        let arguments = format!("-D d -e {external}");
        let finished =
            filter(dir.path(), redirections, "image-extract", &arguments).start().finish();
        assert_eq!(finished.status.code(), Some(1), "{redirections}: {:?}", finished.stderr);
        assert_eq!(finished.stderr, [format!("image-extract: {said}")], "{redirections}");
        let left: Vec<_> = fs::read_dir(dir.path().join("d")).expect("d").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn a_dump_takes_external_files_that_are_different() {
    let dir = directory();
    let open = |name: &str| File::open(dir.path().join(name)).expect("a file");
    fs::write(dir.path().join("other"), b"other").expect("a file");
    let d = dir.path().join("d");
    let capture = tests::filters::capture(&d).args(["-e", "a:20,b:21"]);
    let capture = Capture::start(capture.fd(20, open("image")).fd(21, open("other")));
    let mut client = DumpClient::connect(&d).expect("the socket is there");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(read_stream(&captured.stdout).expect("an image")["b"], b"other");
}
