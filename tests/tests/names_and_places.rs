//! What a stream says, and who comes to the socket, reaches nothing but the images directory:
//! no file outside it, nothing through a link, no device, nobody else's socket.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Uid, mkfifo};
use tempfile::{TempDir, tempdir};
use tests::criu::{DumpClient, RestoreClient, pipe};
use tests::filters::{self, Capture, files_in};
use tests::malformed::small_stream;
use tests::pipeline::{Filter, Running, collect_from, wait_until};
use tests::stream::Writer;

/// A directory with a directory `images` in it.
fn images() -> (TempDir, PathBuf) {
    let parent = tempdir().expect("a directory");
    let dir = parent.path().join("images");
    fs::create_dir(&dir).expect("a directory");
    (parent, dir)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
}

fn image_of(name: &str) -> Vec<u8> {
    Writer::new().file(name, b"new").file("inventory.img", b"all").image_eof().finish()
}

fn skip(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
}

#[test]
fn extract_replaces_a_link_and_leaves_alone_what_it_leads_to() {
    let (parent, dir) = images();
    let outside = parent.path().join("outside");
    fs::write(&outside, "old").expect("a file");
    symlink(&outside, dir.join("core-1.img")).expect("a link");
    symlink(parent.path().join("nowhere"), dir.join("inventory.img")).expect("a link");
    filters::extract(&dir).run(&image_of("core-1.img")).succeeded();
    assert_eq!(fs::read(&outside).expect("outside"), b"old");
    assert!(!parent.path().join("nowhere").exists(), "made a file through a link");
    for name in ["core-1.img", "inventory.img"] {
        let kind = fs::symlink_metadata(dir.join(name)).expect("extracted").file_type();
        assert!(kind.is_file(), "{name} is no file");
    }
    assert_eq!(fs::read(dir.join("core-1.img")).expect("extracted"), b"new");
}

#[test]
fn extract_leaves_alone_a_file_that_has_another_name_outside() {
    let (parent, dir) = images();
    let outside = parent.path().join("outside");
    fs::write(&outside, "old").expect("a file");
    fs::hard_link(&outside, dir.join("core-1.img")).expect("a link");
    filters::extract(&dir).run(&image_of("core-1.img")).succeeded();
    assert_eq!(fs::read(&outside).expect("outside"), b"old");
    assert_eq!(fs::read(dir.join("core-1.img")).expect("extracted"), b"new");
}

#[test]
fn extract_writes_into_no_fifo_and_no_device() {
    let (_parent, dir) = images();
    mkfifo(&dir.join("core-1.img"), Mode::S_IRWXU).expect("a FIFO");
    filters::extract(&dir).run(&image_of("core-1.img")).succeeded();
    assert_eq!(fs::read(dir.join("core-1.img")).expect("extracted"), b"new");

    let device = dir.join("core-2.img");
    // /dev/full: whatever is written there fails.
    if mknod(&device, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).is_err() {
        return skip("extract_writes_into_no_device", "only root can make devices");
    }
    filters::extract(&dir).run(&image_of("core-2.img")).succeeded();
    assert_eq!(fs::read(&device).expect("extracted"), b"new");
}

#[test]
fn extract_replaces_no_directory() {
    let (_parent, dir) = images();
    fs::create_dir(dir.join("core-1.img")).expect("a directory");
    fs::write(dir.join("core-1.img/mine"), "old").expect("a file");
    let refused = filters::extract(&dir).run(&image_of("core-1.img"));
    refused.refused_with_a_place("a directory of that name");
    assert_eq!(fs::read(dir.join("core-1.img/mine")).expect("still there"), b"old");
    assert!(!dir.join("inventory.img").exists(), "looks complete");
    assert_eq!(fs::read_dir(&dir).expect("the directory").count(), 1, "left something behind");
}

#[test]
fn extract_makes_files_for_its_own_user_only() {
    let (_parent, dir) = images();
    let extract = Filter::after("umask 0", "image-extract").progress_apart();
    extract.arg("-D").arg(&dir).run(&small_stream()).succeeded();
    for name in files_in(&dir).keys() {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
}

/// A container with a user namespace reads some of them as its own root.
#[test]
fn extract_makes_files_with_the_permissions_that_are_asked_for() {
    for (option, expected) in [("644", 0o644), ("0640", 0o640), ("600", 0o600)] {
        let (_parent, dir) = images();
        let extract = Filter::after("umask 77", "image-extract").progress_apart();
        let extract = extract.args(["--mode", option, "-D"]).arg(&dir);
        extract.run(&small_stream()).succeeded();
        for name in files_in(&dir).keys() {
            assert_eq!(mode(&dir.join(name)), expected, "{name}, {option}");
        }
    }
    for wrong in ["rw", "1777", "888", ""] {
        let (_parent, dir) = images();
        let extract = filters::extract(&dir).args(["--mode", wrong]);
        extract.run(&small_stream()).refused(2, wrong);
    }
}

/// As a dump may have them, whose limit was another.
#[test]
fn extract_has_as_many_files_open_as_it_is_allowed_to() {
    const FILES: usize = 300;
    let (_parent, dir) = images();
    let names = || (0..FILES).map(|index| format!("core-{index}.img"));
    let begun = names().fold(Writer::new(), |image, name| image.name(name).data(b"one"));
    let ended = names().fold(begun, |image, name| image.name(name).file_eof());
    let image = ended.file("inventory.img", b"all").image_eof().finish();
    let extract = Filter::after("ulimit -S -n 200", "image-extract").progress_apart();
    extract.arg("-D").arg(&dir).run(&image).succeeded();
    assert_eq!(files_in(&dir).len(), FILES + 1);
}

#[test]
fn extract_takes_no_filter_s_socket_for_a_file() {
    let (_parent, dir) = images();
    let capture = Capture::start(filters::capture(&dir));
    let socket = dir.join("streamer-capture.sock");
    let before = fs::symlink_metadata(&socket).expect("the socket").ino();
    for name in ["streamer-capture.sock", "streamer-serve.sock"] {
        let refused = filters::extract(&dir).run(&image_of(name));
        refused.refused_with_a_place(name);
        assert!(refused.stderr[0].contains(name), "{:?}", refused.stderr);
        let after = fs::symlink_metadata(&socket).expect("the socket");
        assert!(after.file_type().is_socket() && after.ino() == before, "{name}");
        assert_eq!(fs::read_dir(&dir).expect("the directory").count(), 1, "{name}: left something");
    }
    let mut client = DumpClient::connect(&dir).expect("the capture goes on");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    capture.finish().succeeded();
}

#[test]
fn a_hostile_name_cannot_break_a_message_s_line() {
    let (_parent, dir) = images();
    let name = "core\n\x1b[2Jimage-extract: all is well";
    fs::create_dir(dir.join(name)).expect("a directory");
    let refused = filters::extract(&dir).run(&image_of(name));
    refused.refused_with_a_place("a name with a line break");
    assert!(!refused.stderr[0].contains('\x1b'), "{:?}", refused.stderr);
}

/// What was there stays until all of the new image is.
#[test]
fn an_image_appears_in_the_directory_when_it_is_whole_and_not_before() {
    let (_parent, dir) = images();
    filters::extract(&dir).run(&image_of("core-1.img")).succeeded();
    let old = files_in(&dir);
    let whole = Writer::new().file("inventory.img", b"other").file("core-1.img", b"other");
    let stream = whole.image_eof().finish();

    let (stdin, feed) = pipe(None).expect("a pipe");
    let extract = filters::extract(&dir).stdin(stdin).start();
    File::from(feed.try_clone().expect("a pipe"))
        .write_all(&stream[..stream.len() - 1])
        .expect("it reads");
    // Until it has made its files, where nobody looks.
    let unfinished = || {
        let entries = fs::read_dir(&dir).expect("the directory").flatten();
        entries.map(|entry| entry.path()).find(|path| path.is_dir())
    };
    wait_until("core-1.img", || unfinished().is_some_and(|path| path.join("core-1.img").exists()));
    for (name, content) in &old {
        assert_eq!(fs::read(dir.join(name)).expect("it is there"), *content, "{name}");
    }
    // A killed one leaves the old image, and nothing that is in the way.
    extract.signal(Signal::SIGKILL);
    assert!(!extract.finish().status.success());
    drop(feed);
    for (name, content) in &old {
        assert_eq!(fs::read(dir.join(name)).expect("it is there"), *content, "{name}");
    }
    filters::extract(&dir).run(&stream).succeeded();
    for name in ["inventory.img", "core-1.img"] {
        assert_eq!(fs::read(dir.join(name)).expect("it is there"), b"other", "{name}");
    }
}

/// The files' bytes, then their names, then `inventory.img`, each on the disk before the next.
#[test]
fn sync_puts_everything_on_the_disk_and_the_inventory_last() {
    const TEST: &str = "sync_puts_everything_on_the_disk_and_the_inventory_last";
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(TEST, "no strace");
    }
    let (parent, dir) = images();
    filters::extract(&dir).run(&small_stream()).succeeded();
    let trace = parent.path().join("trace");
    let calls = "trace=fsync,renameat,renameat2,unlinkat,exit_group";
    let launcher = ["strace", "-f", "-y", "-qq", "-e", calls, "-o"];
    let launcher = [&launcher[..], &[trace.to_str().expect("UTF-8")]].concat();
    let extract = Filter::under(&launcher, "image-extract").progress_apart();
    extract.args(["--sync", "-D"]).arg(&dir).run(&small_stream()).succeeded();

    let trace = fs::read_to_string(trace).expect("strace has written");
    let words: Vec<String> = trace.lines().filter_map(|line| step(line, &dir)).collect();
    let others = ["empty.img", "pagemap-7.img", "pages-1.img"];
    let mut renamed = words[6..9].to_vec();
    renamed.sort();
    assert_eq!(
        words[..4],
        ["sync pages-1.img", "sync pagemap-7.img", "sync empty.img", "sync inventory.img"]
    );
    assert_eq!(words[4..6], ["unlink inventory.img", "sync the directory"]);
    assert_eq!(renamed, others.map(|name| format!("rename {name}")));
    assert_eq!(words[9..12], ["sync the directory", "rename inventory.img", "sync the directory"]);
    assert!(words[12..].iter().all(|word| !word.starts_with("sync")), "{words:?}");
}

/// A line of strace's in words, if it is about an image file or the directory.
fn step(line: &str, dir: &Path) -> Option<String> {
    let file = || ["pages-1.img", "pagemap-7.img", "empty.img", "inventory.img"];
    let name = file().into_iter().find(|name| line.contains(name));
    let of_directory = format!("<{}>)", dir.display());
    match (line, name) {
        (line, Some(name)) if line.contains(" fsync(") => Some(format!("sync {name}")),
        (line, None) if line.contains(" fsync(") && line.contains(&of_directory) => {
            Some("sync the directory".into())
        }
        (line, Some(name)) if line.contains(" rename") => Some(format!("rename {name}")),
        (line, Some(name)) if line.contains(" unlinkat(") && line.contains("= 0") => {
            Some(format!("unlink {name}"))
        }
        _ => None,
    }
}

#[test]
fn sync_writes_external_files_to_the_disk_too_and_takes_pipes() {
    let (parent, dir) = images();
    let file = parent.path().join("pages");
    let (collect, output) = pipe(None).expect("a pipe");
    let collect = collect_from(collect);
    let external = "pages-1.img:20,pagemap-7.img:21";
    let extract = filters::extract(&dir).args(["--sync", "-e", external]);
    let extract = extract.fd(20, File::create(&file).expect("a file")).fd(21, output);
    extract.run(&small_stream()).succeeded();
    collect.join().expect("the external file");
    assert_eq!(fs::read(file).expect("the file"), b"some pages and more");
}

/// The filters that listen: the program, the socket's name, started and waiting.
fn listening(dir: &Path, name: &str) -> Filter {
    Filter::after("umask 0", name).arg("-D").arg(dir).progress_apart()
}

const SOCKETS: [(&str, &str); 2] =
    [("criu-sock-capture", "streamer-capture.sock"), ("image-serve", "streamer-serve.sock")];

fn start(dir: &Path, name: &str) -> Running {
    let running = match name {
        "image-serve" => filters::start_serve(listening(dir, name), &small_stream()),
        _ => listening(dir, name).start(),
    };
    running.wait_for("socket-init");
    running
}

#[test]
fn sockets_can_be_connected_to_by_their_own_user_only() {
    for (name, socket) in SOCKETS {
        let (_parent, dir) = images();
        let _running = start(&dir, name);
        assert_eq!(mode(&dir.join(socket)), 0o600, "{socket}");
    }
}

#[test]
fn a_second_one_in_the_same_directory_is_refused_while_the_first_lives() {
    for (name, socket) in SOCKETS {
        let (_parent, dir) = images();
        let first = start(&dir, name);
        let before = fs::symlink_metadata(dir.join(socket)).expect("the socket").ino();
        let refuse = |case: &str| {
            let second = listening(&dir, name).run(&small_stream());
            second.refused_with_a_place(case);
            assert!(second.stderr[0].ends_with("another program listens there"), "{second:?}");
            let after = fs::symlink_metadata(dir.join(socket)).expect("the socket").ino();
            assert_eq!(after, before, "{case}: the socket is another one");
        };
        refuse("while the first waits");
        if name == "criu-sock-capture" {
            let mut client = DumpClient::connect(&dir).expect("the first one listens");
            let mut core = client.open("core-1.img").expect("a pipe");
            first.wait_for("checkpoint-start");
            refuse("in the middle of a dump");
            core.write_all(b"core").expect("the first one reads");
            drop(core);
            client.send("inventory.img", b"all").expect("the first one reads");
        } else {
            let mut client = RestoreClient::connect(&dir).expect("the first one listens");
            client.read("inventory.img").expect("a reply").expect("the inventory");
            refuse("in the middle of a restore");
        }
        first.finish().succeeded();
        assert!(!dir.join(socket).exists(), "the socket is still there");
    }
}

#[test]
fn a_socket_that_a_killed_one_left_behind_is_replaced() {
    for (name, socket) in SOCKETS {
        let (_parent, dir) = images();
        let killed = start(&dir, name);
        killed.signal(Signal::SIGKILL);
        killed.finish();
        assert!(dir.join(socket).exists(), "nothing to replace");
        let next = start(&dir, name);
        assert!(UnixStream::connect(dir.join(socket)).is_ok(), "{name} does not listen");
        drop(next);
    }
}

/// Whoever may not write to a socket is not told whether somebody listens.
#[test]
fn a_socket_of_another_user_is_left_alone() {
    const TEST: &str = "a_socket_of_another_user_is_left_alone";
    const STRANGER: u32 = 65533;

    if !Uid::effective().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        return skip(TEST, "needs root, and setpriv");
    }
    for (name, socket) in SOCKETS {
        let (_parent, dir) = images();
        let path = dir.join(socket);
        let listener = UnixListener::bind(&path).expect("a socket");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        chown(&path, Some(STRANGER), Some(STRANGER)).expect("root can");
        let before = fs::symlink_metadata(&path).expect("the socket").ino();
        let powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
        let filter = Filter::under(&powerless, name).arg("-D").arg(&dir).progress_apart();
        let refused = filter.run(&small_stream());
        refused.refused_with_a_place(name);
        let message = &refused.stderr[0];
        assert!(message.ends_with("is another user's, who may listen there"), "{message}");
        assert_eq!(fs::symlink_metadata(&path).expect("the socket").ino(), before, "{name}");
        drop(listener);
    }
}

#[test]
fn what_is_no_socket_is_not_replaced_by_one() {
    for (name, socket) in SOCKETS {
        let (parent, dir) = images();
        let outside = parent.path().join("outside");
        fs::write(&outside, "old").expect("a file");
        for by_link in [false, true] {
            match by_link {
                true => symlink(&outside, dir.join(socket)).expect("a link"),
                false => fs::write(dir.join(socket), "mine").expect("a file"),
            }
            let refused = listening(&dir, name).run(&small_stream());
            refused.refused_with_a_place("something else in the socket's place");
            assert!(dir.join(socket).exists(), "it was removed");
            fs::remove_file(dir.join(socket)).expect("it is still there");
        }
        assert_eq!(fs::read(&outside).expect("outside"), b"old");
    }
}

/// As soon as they read, and before any byte has come.
#[test]
fn filters_that_read_foreign_bytes_can_gain_no_privileges() {
    for (name, _) in SOCKETS {
        let (_parent, dir) = images();
        gains_no_privileges(&start(&dir, name), name);
    }
    for (name, options) in
        [("shard-split", None), ("shard-merge", None), ("image-extract", Some("--verify"))]
    {
        let (input, _feed) = pipe(None).expect("a pipe");
        let running = Filter::new(name).args(options).stdin(input);
        let (_collect, output) = pipe(None).expect("a pipe");
        gains_no_privileges(&running.stdout(output).start(), name);
    }
}

fn gains_no_privileges(running: &Running, name: &str) {
    let status = format!("/proc/{}/status", running.pid());
    wait_until(&format!("{name} can gain no privileges"), || may_gain_none(&status));
}

fn may_gain_none(status: &str) -> bool {
    fs::read_to_string(status).expect("its status").contains("NoNewPrivs:\t1\n")
}

/// The user's commands are not confined: they may be `sudo`.
#[test]
fn the_commands_of_filter_keep_their_privileges() {
    if may_gain_none("/proc/self/status") {
        return skip("the_commands_of_filter_keep_their_privileges", "they had none before");
    }
    let parent = tempdir().expect("a directory");
    let filter = |name: &str, command: &str| {
        let filter = Filter::new(name).progress_apart().current_dir(parent.path());
        filter.args([
            "-n",
            "1",
            "--filter",
            &format!("grep -q 'NoNewPrivs:.0' /proc/self/status && {command}"),
        ])
    };
    filter("shard-split", "cat > shard").run(&small_stream()).succeeded();
    filter("shard-merge", "cat shard").run(&[]).succeeded();
}

/// As SECURITY.md says.
#[test]
fn filters_need_no_capabilities() {
    const TEST: &str = "filters_need_no_capabilities";
    let root = Uid::effective().is_root();
    let setpriv: &[&str] = match root {
        true => &["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
        false => &["setpriv", "--no-new-privs"],
    };
    if Command::new("setpriv").arg("--version").output().is_err() {
        return skip(TEST, "no setpriv");
    }
    let (parent, dir) = images();
    let shards = [0, 1].map(|index| parent.path().join(format!("{index}")));
    let create = |path: &PathBuf| OwnedFd::from(File::create(path).expect("a file"));
    let open = |path: &PathBuf| OwnedFd::from(File::open(path).expect("a file"));

    let split = Filter::under(setpriv, "shard-split").args(["-s", "10,11"]).progress_apart();
    let split = split.fd(10, create(&shards[0])).fd(11, create(&shards[1]));
    split.run(&small_stream()).succeeded();
    let merge = Filter::under(setpriv, "shard-merge").args(["-s", "10,11"]).progress_apart();
    let merged = merge.fd(10, open(&shards[0])).fd(11, open(&shards[1])).run(&[]);
    merged.succeeded();
    let extract = Filter::under(setpriv, "image-extract").args(["--sync", "-D"]).arg(&dir);
    extract.progress_apart().run(&merged.stdout).succeeded();
    assert_eq!(files_in(&dir)["inventory.img"], b"everything");

    // Nor do those that speak with a CRIU of the same user.
    let capture = Filter::under(setpriv, "criu-sock-capture").arg("-D").arg(&dir);
    let capture = Capture::start(capture.progress_apart());
    let mut client = DumpClient::connect(&dir).expect("the socket is there");
    client.send("inventory.img", b"all").expect("capture reads");
    drop(client);
    capture.finish().succeeded();
    let serve = Filter::under(setpriv, "image-serve").arg("-D").arg(&dir).progress_apart();
    let serve = filters::start_serve(serve, &small_stream());
    serve.wait_for("socket-init");
    let mut client = RestoreClient::connect(&dir).expect("the socket is there");
    client.read("inventory.img").expect("a reply").expect("the inventory");
    drop(client);
    serve.finish().succeeded();

    // The tool has done what it was asked for.
    let mut cat = Command::new(setpriv[0]);
    let status = cat.args(&setpriv[1..]).args(["cat", "/proc/self/status"]).output();
    let status = String::from_utf8_lossy(&status.expect("setpriv").stdout).into_owned();
    assert!(!root || status.contains("CapEff:\t0000000000000000"), "{status}");
}
