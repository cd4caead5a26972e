//! `criu-page-capture` opposite a stand-in for CRIU: what it makes of a dump, when it answers, and
//! whom it believes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use tests::criu::pipe;
use tests::filters::{self, Capture, files_in};
use tests::page_server::{
    ADD, CLOSE, Entry, FORCE_CLOSE, IN_PARENT, LAZY, Layout, OPEN, PAGE, PARENT, PRESENT,
    PageClient, command, read_pagemap, segment, task,
};
use tests::pipeline::{Filter, Finished, Running};
use tests::random::Random;
use tests::stream::{Files, looks_complete, read_stream};

/// Long enough to see that a program goes on waiting.
const A_WHILE: Duration = Duration::from_millis(300);

const INVENTORY: &[u8] = b"\x16\x31\x31\x58\x03\0\0\0abc";

const HELD: &str = "000102030405060708090a0b0c0d0e0f";

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

/// `criu-page-capture -D dir`, to be started.
fn capture(dir: &Path) -> Filter {
    Filter::new("criu-page-capture").arg("-D").arg(dir).progress_apart()
}

/// One that listens on a port of the system's choice, which it says.
fn listening(dir: &Path) -> Filter {
    capture(dir).args(["--listen", "0", "-v"])
}

fn port(running: &Running) -> u16 {
    let is_it = |line: &str| line.contains("listening on 127.0.0.1:");
    let line = running.stderr().wait_for("the port", is_it);
    line.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

fn connect(capture: &Capture, layout: Layout) -> PageClient {
    PageClient::tcp(port(&capture.running), layout).expect("it listens")
}

/// The files as CRIU writes them, all of which it has open at once.
fn write_files(dir: &Path, files: &[(&str, &[u8])]) {
    let mut open = Vec::new();
    for (name, content) in files {
        let mut file = File::create(dir.join(name)).expect("a file");
        file.write_all(content).expect("a file");
        open.push(file);
    }
}

fn files_of(finished: &Finished) -> Files {
    read_stream(&finished.stdout).expect("a valid stream")
}

/// A whole dump, with runs of every size: what was sent.
fn dump(client: &mut PageClient, seed: u64) -> Vec<(u64, Vec<Entry>, Vec<u8>)> {
    let mut random = Random::new(seed);
    let mut sent = Vec::new();
    for memory in [segment(10), task(77), task(78), task(79)] {
        assert_eq!(client.open(memory).expect("an answer"), 0);
        let (mut entries, mut content, mut start) = (Vec::new(), Vec::new(), 0x1000);
        let runs = if memory == task(79) { 0 } else { 40 };
        for index in 0..runs {
            let pages = if index % 10 == 0 { 256 } else { 1 + random.magnitude_below(40) };
            let bytes = random.bytes(pages * PAGE);
            let flags = random.pick(&[PRESENT, PRESENT | LAZY]);
            client.pages(memory, start, flags, &bytes).expect("capture reads");
            entries.push(Entry { start, pages: pages as u64, flags });
            content.extend(bytes);
            start += ((pages + random.below(3)) * PAGE) as u64;
        }
        sent.push((memory, entries, content));
    }
    sent
}

fn assert_is_what_was_sent(files: &Files, sent: &[(u64, Vec<Entry>, Vec<u8>)]) {
    for (pages_id, (memory, entries, content)) in (1..).zip(sent) {
        let name = match (memory >> 8, memory & 0xff) {
            (pid, 1) => format!("pagemap-{pid}.img"),
            (id, _) => format!("pagemap-shmem-{id}.img"),
        };
        assert_eq!(read_pagemap(&files[&name]), (pages_id, entries.clone()), "{name}");
        assert!(
            files[&format!("pages-{pages_id}.img")] == *content,
            "pages-{pages_id}.img differs"
        );
    }
}

#[test]
fn a_dump_becomes_an_image_in_both_layouts() {
    for layout in [Layout::Short, Layout::Long] {
        let dir = directory();
        let capture = Capture::start(listening(dir.path()));
        let mut client = connect(&capture, layout);
        write_files(dir.path(), &[("core-77.img", b"core"), ("dump.log", b"a log")]);
        let sent = dump(&mut client, 1);
        write_files(dir.path(), &[("inventory.img", INVENTORY), ("descriptors.json", b"{}")]);
        let mut files = File::create(dir.path().join("files.img")).expect("a file");
        assert_eq!(client.close().expect("an answer"), 0);
        files.write_all(b"after the answer").expect("a file");
        drop((files, client));
        let captured = capture.finish();
        captured.succeeded();
        assert_eq!(captured.progress[..2], ["socket-init", "checkpoint-start"]);
        assert_eq!(captured.progress.len(), 3, "{:?}", captured.progress);
        assert_eq!(captured.shard_sizes(), [captured.stdout.len() as u64]);
        let image = files_of(&captured);
        assert_is_what_was_sent(&image, &sent);
        assert_eq!(image["core-77.img"], b"core");
        assert_eq!(image["files.img"], b"after the answer");
        assert_eq!(image["descriptors.json"], b"{}");
        assert!(!image.contains_key("dump.log"), "a log is no part of an image");
        assert_eq!(image.len(), 12);
        let last = tests::stream::records(&captured.stdout).expect("a valid stream");
        let inventory = b"inventory.img".to_vec();
        let mut names =
            last.iter().filter(|record| matches!(record.body, tests::stream::Body::Filename(_)));
        let last = names.next_back().map(|record| record.body.clone());
        assert_eq!(last, Some(tests::stream::Body::Filename(inventory)));
    }
}

#[test]
fn the_last_line_of_progress_names_the_image() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let mut client = connect(&capture, Layout::Long);
    client.open(task(1)).expect("an answer");
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    client.close().expect("an answer");
    let captured = capture.finish();
    let line: serde_json::Value = serde_json::from_str(&captured.progress[2]).expect("JSON");
    let listed = Filter::new("image-extract").args(["--list", "--json"]).run(&captured.stdout);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert!(line["image_id"].is_string());
    assert_eq!(line["image_id"], listed["image_id"]);
}

#[test]
fn criu_may_come_over_a_unix_socket() {
    let dir = directory();
    let path = dir.path().join("pages.sock");
    let images = dir.path().join("images");
    fs::create_dir(&images).expect("a directory");
    let capture = Capture::start(capture(&images).arg("--socket").arg(&path));
    let mut client = PageClient::unix(&path, Layout::Long).expect("it listens");
    let sent = dump(&mut client, 2);
    write_files(&images, &[("inventory.img", INVENTORY)]);
    client.command(FORCE_CLOSE, 0, 0, 0).expect("capture reads");
    assert_eq!(client.number().expect("an answer"), 0);
    let captured = capture.finish();
    captured.succeeded();
    assert_is_what_was_sent(&files_of(&captured), &sent);
    assert!(!path.exists(), "the socket is removed");
}

/// A COMMAND that does what CRIU does with the descriptor that it is given: `script` is what it
/// says; then it waits for the answers, of so many bytes.
fn with_command(dir: &Path, script: &[u8], answers: usize, then: &str) -> Filter {
    let said = dir.join("script");
    fs::write(&said, script).expect("a file");
    let words = format!(
        "cat '{}' >&\"$0\"; head -c {answers} <&\"$0\" >'{}'; {then}",
        said.display(),
        dir.join("answers").display()
    );
    let images = dir.join("images");
    fs::create_dir(&images).expect("a directory");
    capture(&images).args(["--", "bash", "-c", &words, "{}"]).current_dir(&images)
}

fn small_dump() -> Vec<u8> {
    [
        command(Layout::Long, OPEN, 0, 0, task(7)),
        command(Layout::Long, ADD | PRESENT << 16, 1, 0x7000, task(7)),
        vec![7; PAGE],
        command(Layout::Long, FORCE_CLOSE, 0, 0, 0),
    ]
    .concat()
}

const WRITE_INVENTORY: &str = "printf '\\x16\\x31\\x31\\x58\\3\\0\\0\\0abc' > inventory.img";

/// The program to its end, and its stream.
fn finish(filter: Filter) -> Finished {
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = filter.stdout(write_end).start();
    let stdout = tests::pipeline::collect_from(read_end);
    let mut finished = running.finish();
    finished.stdout = stdout.join().expect("stdout is collected");
    finished
}

#[test]
fn a_command_gets_a_descriptor() {
    let dir = directory();
    let captured = finish(with_command(dir.path(), &small_dump(), 5, WRITE_INVENTORY));
    captured.succeeded();
    let files = files_of(&captured);
    assert_eq!(files["pages-1.img"], [7; PAGE]);
    assert_eq!(files["inventory.img"], INVENTORY);
    assert_eq!(fs::read(dir.path().join("answers")).expect("answers"), [0; 5]);
}

#[test]
fn a_command_that_fails_makes_no_image() {
    let dir = directory();
    let then = format!("{WRITE_INVENTORY}; exit 3");
    let captured = finish(with_command(dir.path(), &small_dump(), 5, &then));
    captured.refused(3, "fails at last");
    assert!(captured.stderr[0].contains("exit status 3"), "{:?}", captured.stderr);
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn the_failure_of_a_command_that_never_dumps_is_told() {
    let dir = directory();
    let captured = finish(with_command(dir.path(), b"", 0, "exit 4"));
    captured.refused(4, "fails at once");
    assert!(captured.stderr[0].contains("exit status 4"), "{:?}", captured.stderr);
    let dir = directory();
    let captured = finish(with_command(dir.path(), b"", 0, "exit 0"));
    captured.refused_with_a_place("does nothing");
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn without_the_option_the_stream_ends_with_the_command() {
    for ends_early in [false, true] {
        let dir = directory();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let then = format!("{WRITE_INVENTORY}; read < '{}'", fifo.display());
        let mut filter = with_command(dir.path(), &small_dump(), 5, &then);
        if ends_early {
            let images = dir.path().join("images");
            fs::remove_dir(&images).expect("a directory");
            let said = format!(
                "cat '{0}/script' >&\"$0\"; head -c 5 <&\"$0\" >/dev/null; {then}",
                dir.path().display()
            );
            fs::create_dir(&images).expect("a directory");
            filter = capture(&images).arg("--end-at-inventory");
            filter = filter.args(["--", "bash", "-c", &said, "{}"]).current_dir(&images);
        }
        let (read_end, write_end) = pipe(None).expect("a pipe");
        let running = filter.stdout(write_end).start();
        let stdout = tests::pipeline::collect_from(read_end);
        if ends_early {
            // The stream ends, and the program does not.
            assert!(looks_complete(&stdout.join().expect("the stream")));
            assert!(running.is_running());
            fs::write(&fifo, "\n").expect("the command reads");
        } else {
            let mut release = File::options().write(true).open(&fifo).expect("the command reads");
            sleep(A_WHILE);
            assert!(!stdout.is_finished(), "the stream did not wait for the command");
            release.write_all(b"\n").expect("the command reads");
            assert!(looks_complete(&stdout.join().expect("the stream")));
        }
        running.finish().succeeded();
    }
}

#[test]
fn the_files_are_taken_when_criu_has_closed_them() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let mut client = connect(&capture, Layout::Long);
    client.open(task(1)).expect("an answer");
    let mut files = File::create(dir.path().join("files.img")).expect("a file");
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    client.close().expect("an answer");
    drop(client);
    sleep(A_WHILE);
    assert!(capture.running.is_running(), "did not wait for files.img");
    files.write_all(b"the rest").expect("a file");
    drop(files);
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(files_of(&captured)["files.img"], b"the rest");
}

/// A pre-dump writes its inventory behind everything else.
#[test]
fn an_inventory_may_come_after_the_connection() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let mut client = connect(&capture, Layout::Long);
    client.has_parent(task(1)).expect("an answer");
    client.open(task(1)).expect("an answer");
    client.close().expect("an answer");
    drop(client);
    sleep(A_WHILE);
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    capture.finish().succeeded();
}

/// What is on its way is the memory of the process, which may run after the answer.
#[test]
fn criu_is_answered_when_the_reader_has_all_memory() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = listening(dir.path()).stdout(write_end).start();
    let mut client = PageClient::tcp(port(&running), Layout::Long).expect("it listens");
    client.open(task(1)).expect("an answer");
    client.pages(task(1), 0, PRESENT, &[7; 20 * PAGE]).expect("capture reads");
    client.command(CLOSE, 0, 0, 0).expect("capture reads");
    assert!(!client.is_answered_within(A_WHILE), "answered too early");
    let stdout = tests::pipeline::collect_from(read_end);
    assert_eq!(client.number().expect("an answer"), 0);
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    running.finish().succeeded();
    assert!(looks_complete(&stdout.join().expect("the stream")));
}

#[test]
fn criu_is_not_answered_when_the_reader_goes() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = listening(dir.path()).stdout(write_end).start();
    let mut client = PageClient::tcp(port(&running), Layout::Long).expect("it listens");
    client.open(task(1)).expect("an answer");
    client.pages(task(1), 0, PRESENT, &[7; PAGE]).expect("capture reads");
    client.command(CLOSE, 0, 0, 0).expect("capture reads");
    assert!(!client.is_answered_within(A_WHILE), "answered too early");
    drop(read_end);
    assert!(client.number().is_err(), "CRIU must not let the process go");
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.iter().any(|line| line.contains("Broken pipe")), "{finished:?}");
}

#[test]
fn a_reader_that_goes_before_criu_comes_is_noticed() {
    let dir = directory();
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = listening(dir.path()).stdout(write_end).start();
    running.wait_for("socket-init");
    drop(read_end);
    assert_eq!(running.finish().status.code(), Some(1));
}

#[test]
fn every_cut_of_a_dump_is_refused() {
    let whole = small_dump();
    for cut in (0..whole.len()).filter(|cut| cut % 509 == 0 || *cut < 70) {
        let dir = directory();
        let path = dir.path().join("s");
        let images = dir.path().join("images");
        fs::create_dir(&images).expect("a directory");
        write_files(&images, &[]);
        let capture = Capture::start(capture(&images).arg("--socket").arg(&path));
        let mut client = PageClient::unix(&path, Layout::Long).expect("it listens");
        client.send(&whole[..cut]).expect("capture reads");
        write_files(&images, &[("inventory.img", INVENTORY)]);
        drop(client);
        if cut < 32 {
            // It has not said enough to be CRIU: another one may come.
            sleep(Duration::from_millis(1));
            assert!(capture.running.is_running(), "cut at {cut}");
            continue;
        }
        let captured = capture.finish();
        captured.refused_with_a_place(&format!("cut at {cut}"));
        assert!(!looks_complete(&captured.stdout), "cut at {cut}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let open = || command(Layout::Long, OPEN, 0, 0, task(7));
    let add = |flags: u32, pages, start, memory| {
        command(Layout::Long, ADD | flags << 16, pages, start, memory)
    };
    let cases = [
        ("unknown command 0x7", command(Layout::Long, 7, 0, 0, task(7)), "unknown command"),
        ("no kind", command(Layout::Long, OPEN, 0, 0, 7 << 8 | 9), "neither"),
        ("no pid", command(Layout::Long, PARENT, 0, 0, 1 << 50 | 1), "neither"),
        ("flags", add(PRESENT | IN_PARENT, 1, 0, task(7)), "flags"),
        ("left out", add(LAZY, 1, 0, task(7)), "flags"),
        ("no pages", add(PRESENT, 0, 0, task(7)), "0 pages"),
        ("too many", add(PRESENT, 1 << 60, 0, task(7)), "address space"),
        ("unaligned", add(PRESENT, 1, 77, task(7)), "0x4d"),
        ("another's", add(PRESENT, 1, 0, task(8)), "task 8"),
        ("without --parent", add(IN_PARENT, 1, 0, task(7)), "--parent"),
        ("again", [open(), add(PRESENT, 1, 0, task(7))].concat(), "twice"),
    ];
    for (case, bytes, cause) in cases {
        let dir = directory();
        let capture = Capture::start(listening(dir.path()));
        let mut client = connect(&capture, Layout::Long);
        client.open(task(7)).expect("an answer");
        write_files(dir.path(), &[("inventory.img", INVENTORY)]);
        let _ = client.send(&bytes);
        let captured = capture.finish();
        let said = captured.stderr.last().expect("a message");
        assert_eq!(captured.status.code(), Some(1), "{case}: {said}");
        assert!(
            said.contains("criu-page-capture: CRIU: ") && said.contains(cause),
            "{case}: {said}"
        );
        assert!(!looks_complete(&captured.stdout), "{case}");
    }
}

#[test]
fn a_page_that_comes_twice_is_refused() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let mut client = connect(&capture, Layout::Short);
    client.open(task(7)).expect("an answer");
    client.pages(task(7), 0x2000, PRESENT, &[1; 2 * PAGE]).expect("capture reads");
    client.pages(task(7), 0x1000, PRESENT, &[1; 2 * PAGE]).expect("capture reads");
    assert!(client.close().is_err());
    let captured = capture.finish();
    assert!(captured.stderr.last().is_some_and(|said| said.contains("0x2000 comes twice")));
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn strangers_who_connect_first_do_not_end_a_dump() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let port = port(&capture.running);
    let stranger = || TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let silent: Vec<_> = (0..100).map(|_| stranger()).collect();
    let mut garbage = stranger();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it listens");
    drop(stranger());
    let mut slow = stranger();
    slow.write_all(&OPEN.to_le_bytes()).expect("it listens");
    assert_eq!(garbage.read(&mut [0]).unwrap_or(0), 0, "hung up on");
    let mut client = PageClient::tcp(port, Layout::Long).expect("it listens");
    let sent = dump(&mut client, 3);
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    assert_eq!(client.close().expect("an answer"), 0);
    let captured = capture.finish();
    captured.succeeded();
    assert_is_what_was_sent(&files_of(&captured), &sent);
    drop((silent, slow));
}

/// Says all of a dump to a port, as another user.
fn dump_as_nobody(port: u16, dir: &Path) -> Command {
    let said = dir.join("said");
    fs::write(&said, small_dump()).expect("a file");
    fs::set_permissions(&said, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("a file");
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a file");
    let script =
        format!("exec 3<>/dev/tcp/127.0.0.1/{port}; cat '{}' >&3; head -c 5 <&3", said.display());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", &script]);
    command
}

#[test]
fn another_user_is_not_believed() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: another_user_is_not_believed: only root can be another user");
        return;
    }
    let dir = directory();
    let other = directory();
    let capture = Capture::start(listening(dir.path()));
    let port = port(&capture.running);
    let said = dump_as_nobody(port, other.path()).output().expect("setpriv runs");
    assert_eq!(said.stdout, b"", "another user was answered");
    let mut client = PageClient::tcp(port, Layout::Long).expect("it listens");
    let sent = dump(&mut client, 4);
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    assert_eq!(client.close().expect("an answer"), 0);
    let captured = capture.finish();
    captured.succeeded();
    assert_is_what_was_sent(&files_of(&captured), &sent);
}

/// A dump that fails before it has come to memory says goodbye all the same.
#[test]
fn a_dump_that_failed_makes_no_image() {
    for layout in [Layout::Short, Layout::Long] {
        let dir = directory();
        let script = [command(layout, FORCE_CLOSE, 0, 0, 0)].concat();
        let captured = finish(with_command(dir.path(), &script, 4, "exit 1"));
        captured.refused(1, "fails");
        assert!(captured.stderr[0].contains("exit status 1"), "{:?}", captured.stderr);
        // A command that does not tell.
        let dir = directory();
        let captured = finish(with_command(dir.path(), &small_dump(), 5, "touch core-1.img"));
        captured.refused_with_a_place("no inventory");
        assert!(captured.stderr[0].contains("inventory.img"), "{:?}", captured.stderr);
        assert!(!looks_complete(&captured.stdout));
    }
}

#[test]
fn an_inventory_that_is_cut_makes_no_image() {
    let dir = directory();
    let then = "printf '\\x16\\x31\\x31\\x58\\3\\0\\0\\0ab' > inventory.img";
    let captured = finish(with_command(dir.path(), &small_dump(), 5, then));
    captured.refused_with_a_place("a cut inventory");
    assert!(!looks_complete(&captured.stdout));
}

#[test]
fn files_of_another_image_are_refused() {
    let dir = directory();
    write_files(dir.path(), &[("core-1.img", b"old")]);
    let finished = listening(dir.path()).start().finish();
    finished.refused_with_a_place("a file of another image");
    assert!(finished.stderr[0].contains("core-1.img"), "{:?}", finished.stderr);
    assert_eq!(files_in(dir.path()).len(), 1);
}

#[test]
fn a_file_that_came_over_the_connection_must_not_be_in_the_directory() {
    let dir = directory();
    let then = format!("{WRITE_INVENTORY}; touch pages-1.img");
    let captured = finish(with_command(dir.path(), &small_dump(), 5, &then));
    captured.refused_with_a_place("pages twice");
    assert!(captured.stderr[0].contains("pages-1.img"), "{:?}", captured.stderr);
}

#[test]
fn links_are_no_files_of_the_image() {
    let dir = directory();
    let then = format!("{WRITE_INVENTORY}; ln -s ../base parent; ln -s /etc/passwd x.img");
    let captured = finish(with_command(dir.path(), &small_dump(), 5, &then));
    captured.succeeded();
    let names: Vec<_> = files_of(&captured).into_keys().collect();
    assert_eq!(names, ["inventory.img", "pagemap-7.img", "pages-1.img"]);
}

/// As CRIU has it with `--prev-images-dir`: a link to the directory of the dump before, which says
/// what image that was.
fn link_parent(dir: &Path, parent: &Path, id: &str) {
    fs::write(parent.join("criu-page-capture.id"), format!("{id}\n")).expect("a file");
    std::os::unix::fs::symlink(parent, dir.join("parent")).expect("a link");
}

/// The increment of an image, and what it holds.
fn increment() -> Finished {
    let (dir, parent) = (directory(), directory());
    link_parent(dir.path(), parent.path(), HELD);
    let capture = Capture::start(listening(dir.path()).args(["--parent", HELD]));
    let mut client = connect(&capture, Layout::Long);
    assert_eq!(client.has_parent(task(7)).expect("an answer"), 1);
    assert_eq!(client.open(task(7)).expect("an answer"), 1);
    client.unchanged(task(7), 0x1000, 500).expect("capture reads");
    client.pages(task(7), 0x1f5000, PRESENT, &[1; PAGE]).expect("capture reads");
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    assert_eq!(client.close().expect("an answer"), 0);
    let captured = capture.finish();
    captured.succeeded();
    captured
}

#[test]
fn an_increment_has_what_has_changed() {
    let captured = increment();
    let files = files_of(&captured);
    let expected = [
        Entry { start: 0x1000, pages: 500, flags: IN_PARENT },
        Entry { start: 0x1f5000, pages: 1, flags: PRESENT },
    ];
    assert_eq!(read_pagemap(&files["pagemap-7.img"]), (1, expected.to_vec()));
    assert_eq!(files["pages-1.img"], [1; PAGE]);
    let listed = Filter::new("image-extract").args(["--list", "--json"]).run(&captured.stdout);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(listed["parent_id"], HELD);
}

/// With each dump the kernel forgets what has changed: what is not in the increment that was begun
/// first would be in none.
#[test]
fn an_increment_is_begun_only_on_the_last_dump() {
    let parent = directory();
    let other = "ff".repeat(16);
    for (case, id, expected) in [
        ("another image", other.as_str(), Some("is not the dump of image 000102")),
        ("the first", HELD, None),
        ("the second", HELD, Some("was begun before")),
    ] {
        let dir = directory();
        link_parent(dir.path(), parent.path(), id);
        let capture = Capture::start(listening(dir.path()).args(["--parent", HELD]));
        let mut client = connect(&capture, Layout::Long);
        let answer = client.has_parent(task(7));
        assert_eq!(answer.is_ok(), expected.is_none(), "{case}");
        // Even if it fails.
        drop(client);
        let captured = capture.finish();
        assert_eq!(captured.status.code(), Some(1), "{case}");
        let said = captured.stderr.last().expect("a message");
        assert!(said.contains(expected.unwrap_or("hung up")), "{case}: {said}");
    }
    let dir = directory();
    let capture = Capture::start(listening(dir.path()).args(["--parent", HELD]));
    let mut client = connect(&capture, Layout::Long);
    assert!(client.open(task(7)).is_err(), "CRIU was not told which dump is before");
    assert_eq!(capture.finish().status.code(), Some(1));
}

#[test]
fn the_directory_tells_the_image() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()).args(["--image-id", HELD]));
    let mut client = connect(&capture, Layout::Long);
    client.open(task(1)).expect("an answer");
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    client.close().expect("an answer");
    capture.finish().succeeded();
    let told = fs::read_to_string(dir.path().join("criu-page-capture.id")).expect("a file");
    assert_eq!(told.trim(), HELD);
}

#[test]
fn an_increment_alone_is_not_restored() {
    let stream = increment().stdout;
    let dir = directory();
    for filter in [filters::serve(dir.path()), filters::extract(dir.path())] {
        let finished = filter.run(&stream);
        finished.refused_with_a_place("an increment");
        assert!(finished.stderr[0].contains(HELD), "{:?}", finished.stderr);
        assert_eq!(files_in(dir.path()).len(), 0);
    }
    filters::extract(dir.path()).arg("--increment").run(&stream).succeeded();
    assert_eq!(files_in(dir.path()), read_stream(&stream).expect("a valid stream"));
    Filter::new("image-extract").arg("--verify").run(&stream).succeeded();
}

#[test]
fn an_increment_stays_one_through_shards() {
    let stream = increment().stdout;
    let (split, shards) = filters::split(&stream, 3);
    split.succeeded();
    let merged = filters::merge(&shards);
    merged.succeeded();
    let dir = directory();
    let finished = filters::extract(dir.path()).run(&merged.stdout);
    finished.refused_with_a_place("an increment");
    assert!(finished.stderr[0].contains(HELD), "{:?}", finished.stderr);
}

#[test]
fn wrong_usage_is_refused() {
    let dir = directory();
    let refused = |filter: Filter, case: &str| {
        filter.start().finish().refused(2, case);
    };
    refused(capture(dir.path()), "nothing to connect to");
    refused(capture(dir.path()).args(["--listen", "localhost:1"]), "a name");
    refused(capture(dir.path()).args(["--listen", "1", "--socket", "x"]), "two ways");
    refused(listening(dir.path()).args(["--parent", "123"]), "no id");
}

#[test]
fn a_signal_removes_the_socket() {
    let dir = directory();
    let path: PathBuf = dir.path().join("s");
    let running = capture(dir.path()).arg("--socket").arg(&path).start();
    running.wait_for("socket-init");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
    assert!(!path.exists());
}

/// CRIU opens, writes and closes thousands of files, while the filter waits for memory or moves it.
#[test]
fn many_files_are_followed() {
    let dir = directory();
    let capture = Capture::start(listening(dir.path()));
    let mut client = connect(&capture, Layout::Long);
    client.open(task(1)).expect("an answer");
    for number in 0..20_000 {
        fs::write(dir.path().join(format!("ghost-file-{number}.img")), b"ghost").expect("a file");
    }
    write_files(dir.path(), &[("inventory.img", INVENTORY)]);
    client.close().expect("an answer");
    let captured = capture.finish();
    captured.succeeded();
    assert_eq!(files_of(&captured).len(), 20_003);
}
