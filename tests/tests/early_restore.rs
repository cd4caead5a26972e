//! A restore that begins when the metadata is there: CRIU gets memory while it
//! arrives, and nothing finishes before the image is known to be whole.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use tests::criu::{RestoreClient, pipe};
use tests::filters;
use tests::memory::Held;
use tests::pipeline::{Filter, Finished, Running};
use tests::random::Random;
use tests::stream::{Writer, records};

const MIB: usize = 1 << 20;
const STORES: [&str; 3] = ["auto", "pipe", "memory"];
/// Descriptors up to that of the progress lines are not the store's.
const GIVEN: i32 = 9;

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

/// The metadata of an image whose memory is to come, with the names of all.
fn metadata(names: &[&str]) -> Writer {
    let writer = Writer::new().file("core-1.img", b"core").file("empty.img", b"");
    let writer = names.iter().fold(writer, |writer, name| writer.name(name));
    writer.name("inventory.img").data(b"all").all_named()
}

/// A `criu restore` whose memory comes later, in an `image-serve` with this store.
struct Early {
    dir: TempDir,
    running: Running,
    feed: Option<File>,
}

impl Early {
    fn start(store: &str, stream: &[u8]) -> Early {
        let dir = directory();
        let (stdin, feed) = pipe(None).expect("a pipe");
        let serve = filters::serve(dir.path()).arg("--store").arg(store).arg("--clients");
        let running = serve.arg("1").stdin(stdin).start();
        let mut feed = File::from(feed);
        feed.write_all(stream).expect("serve reads");
        Early { dir, running, feed: Some(feed) }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.feed.as_ref().expect("not ended").write_all(bytes).expect("serve reads");
    }

    /// The stream ends.
    fn end(&mut self) {
        self.feed = None;
    }

    /// Begins the restore, by its first file.
    fn restore(&self) -> RestoreClient {
        self.running.wait_for("socket-init");
        let mut client = RestoreClient::connect(self.dir.path()).expect("the socket is there");
        assert_eq!(client.read("inventory.img").expect("a reply").as_deref(), Some(&b"all"[..]));
        client
    }

    fn finish(self) -> Finished {
        drop(self.feed);
        self.running.finish()
    }
}

/// Reads a file, and says how much of it has come each time.
struct Reader {
    reads: Receiver<usize>,
    so_far: usize,
    content: JoinHandle<Vec<u8>>,
}

impl Reader {
    fn of(client: &mut RestoreClient, name: &str) -> Reader {
        let mut file = client.open(name).expect("a reply").expect("it is served");
        let (send, reads) = channel();
        let content = thread::spawn(move || {
            let (mut content, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                let read = file.read(&mut buffer).expect("the pipe");
                content.extend_from_slice(&buffer[..read]);
                let _ = send.send(content.len());
                if read == 0 {
                    return content;
                }
            }
        });
        Reader { reads, so_far: 0, content }
    }

    /// Waits until so many bytes were read.
    fn has(&mut self, bytes: usize) {
        while self.so_far < bytes {
            let limit = Duration::from_secs(60);
            let read = self.reads.recv_timeout(limit).expect("more of the file");
            assert!(read > self.so_far, "it ends after {read} bytes of {bytes}");
            self.so_far = read;
        }
    }

    fn all(self) -> Vec<u8> {
        self.content.join().expect("the reader")
    }
}

#[test]
fn memory_is_handed_on_while_it_arrives() {
    for store in STORES {
        let pages = Random::new(1).bytes(64 * MIB);
        let chunks = pages.chunks(MIB / 2);
        let named = metadata(&["pages-1.img"]).name("pages-1.img");
        let whole = chunks.fold(named, Writer::data).file_eof().image_eof().finish();
        let (first, second) = whole.split_at(whole.len() / 2);
        let mut early = Early::start(store, first);
        let mut client = early.restore();
        assert_eq!(client.read("core-1.img").expect("a reply").as_deref(), Some(&b"core"[..]));
        assert!(client.open("missing.img").expect("a reply").is_none());
        let mut reader = Reader::of(&mut client, "pages-1.img");
        // The newest piece is kept back, and another may not be full yet.
        reader.has(first.len() - 17 * MIB);
        assert_eq!(early.running.progress().so_far(), ["socket-init"], "{store}");
        early.send(second);
        early.end();
        assert!(reader.all() == pages, "{store}: other pages");
        drop(client);
        let finished = early.finish();
        assert_eq!(finished.succeeded().shard_sizes(), [whole.len() as u64], "{store}");
        assert_eq!(finished.progress.len(), 2, "{:?}", finished.progress);
    }
}

/// The stream of an image with this memory, and where its last checks begin: before any of them is
/// done, nothing may run.
fn checked(pages: &[u8], other: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let named = metadata(&["pages-1.img", "pages-2.img"]).name("pages-1.img");
    let memory = pages.chunks(MIB).fold(named, Writer::data);
    let memory = memory.file_eof().name("pages-2.img").data(other);
    let mut checks = vec![memory.clone().finish().len() - 1, memory.clone().finish().len()];
    let ended = memory.file_eof();
    checks.push(ended.clone().finish().len());
    let whole = ended.image_eof().finish();
    // Within the last marker, and where the stream must end behind it.
    checks.extend([whole.len() - 1, whole.len()]);
    (whole, checks)
}

#[test]
fn no_restore_finishes_before_the_last_check_of_the_image() {
    let (pages, other) = (Random::new(2).bytes(20 * MIB), Random::new(3).bytes(700));
    let (whole, checks) = checked(&pages, &other);
    for store in STORES {
        for check in &checks {
            let case = format!("{store}, {check} of {} bytes", whole.len());
            let mut early = Early::start(store, &whole[..*check]);
            let mut client = early.restore();
            let mut first = Reader::of(&mut client, "pages-1.img");
            let second = Reader::of(&mut client, "pages-2.img");
            first.has(MIB);
            assert_eq!(early.running.progress().so_far(), ["socket-init"], "{case}");
            if *check == whole.len() {
                // Not even one byte may follow.
                early.send(b"x");
            }
            let finished = early.finish();
            finished.refused(1, &case);
            assert_eq!(finished.progress, ["socket-init"], "{case}");
            // What was given, and the end of what was not.
            let (first, second) = (first.all(), second.all());
            assert!(pages.starts_with(&first) && other.starts_with(&second), "{case}");
            assert!(second.len() < other.len(), "{case}: all of it was given");
        }
    }
}

#[test]
fn a_stream_that_is_cut_fails_the_restore() {
    let (pages, other) = (Random::new(2).bytes(3 * MIB), Random::new(3).bytes(2 * MIB));
    let (whole, _) = checked(&pages, &other);
    let begun = metadata(&["pages-1.img", "pages-2.img"]).name("pages-1.img");
    let begun = begun.data(&pages[..MIB]).finish().len();
    for tenth in 0..10 {
        let cut = begun + (whole.len() - begun) * tenth / 10;
        let mut early = Early::start("auto", &whole[..begun]);
        let mut client = early.restore();
        let first = Reader::of(&mut client, "pages-1.img");
        let second = Reader::of(&mut client, "pages-2.img");
        early.send(&whole[begun..cut]);
        let finished = early.finish();
        finished.refused_with_a_place(&format!("cut at {cut}"));
        assert!(finished.stderr[0].contains("truncated after"), "{:?}", finished.stderr);
        let read = [first.all(), second.all()];
        assert!(pages.starts_with(&read[0]) && other.starts_with(&read[1]), "cut at {cut}");
        assert!(read[1].len() < other.len(), "cut at {cut}: all of it was given");
    }
}

#[test]
fn a_program_that_fails_before_us_fails_the_restore() {
    // As `zstd` does, which sees a wrong bit by its checksum at the very end.
    let dir = directory();
    let pages = Random::new(4).bytes(2 * MIB);
    let whole = metadata(&["pages-1.img"]).file("pages-1.img", &pages).image_eof().finish();
    let split = filters::split_to(
        (0..2)
            .map(|index| File::create(dir.path().join(index.to_string())).expect("a file").into()),
    );
    split.arg("-m").run(&whole).succeeded();
    let (stdin, stdout) = pipe(None).expect("a pipe");
    let running = filters::serve(dir.path()).stdin(stdin).start();
    let merge = Filter::new("shard-merge").progress_apart().current_dir(dir.path());
    let command =
        "cat $SHARD; test $SHARD != 1 || { until [ -e go ]; do sleep 0.01; done; exit 1; }";
    let merge = merge.args(["-n", "2", "--filter", command]).stdout(stdout).start();
    running.wait_for("socket-init");
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    assert!(client.read("inventory.img").expect("a reply").is_some());
    let reader = Reader::of(&mut client, "pages-1.img");
    std::fs::write(dir.path().join("go"), "").expect("a file");
    let failed = merge.finish();
    failed.refused_with_a_place("a command that fails at the end");
    running.finish().refused_with_a_place("its reader");
    assert!(reader.all().len() < pages.len(), "all of it was given");
}

#[test]
fn several_clients_are_served_while_the_image_arrives() {
    let dir = directory();
    let pages = Random::new(5).bytes(4 * MIB);
    let named = metadata(&["pages-1.img", "late.img"]).name("pages-1.img");
    let before = named.clone().data(&pages).finish();
    let whole = named.data(&pages).file_eof().file("late.img", b"late").image_eof().finish();
    let (stdin, feed) = pipe(None).expect("a pipe");
    let mut feed = File::from(feed);
    let running = filters::serve(dir.path()).args(["--clients", "3"]).stdin(stdin).start();
    feed.write_all(&before).expect("serve reads");
    running.wait_for("socket-init");
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
            assert!(client.read("inventory.img").expect("a reply").is_some());
            client
        })
        .collect();
    let late: Vec<_> = clients.iter_mut().map(|it| Reader::of(it, "late.img")).collect();
    let memory = Reader::of(&mut clients[1], "pages-1.img");
    feed.write_all(&whole[before.len()..]).expect("serve reads");
    drop(feed);
    assert!(memory.all() == pages);
    assert!(late.into_iter().all(|reader| reader.all() == b"late"));
    drop(clients);
    running.finish().succeeded();
}

#[test]
fn criu_is_started_when_external_files_are_complete() {
    let dir = directory();
    let writer = metadata(&["pages-1.img", "fs.tar"]).name("pages-1.img").data(&[7; MIB]);
    let before = writer.clone().name("fs.tar").data(b"files").name("pages-1.img").data(&[7; MIB]);
    let whole = before.clone().name("fs.tar").file_eof().name("pages-1.img").data(&[7; MIB]);
    let (before, whole) = (before.finish(), whole.file_eof().image_eof().finish());
    let (stdin, feed) = pipe(None).expect("a pipe");
    let (external, tar) = pipe(None).expect("a pipe");
    let serve = filters::serve(dir.path()).args(["-e", "fs.tar:20"]).fd(20, tar);
    let running = serve.stdin(stdin).start();
    let mut feed = File::from(feed);
    feed.write_all(&before).expect("serve reads");
    let mut external = File::from(external);
    let mut files = [0; 5];
    external.read_exact(&mut files).expect("it is written while it arrives");
    assert!(running.progress().so_far().is_empty(), "too early");
    feed.write_all(&whole[before.len()..]).expect("serve reads");
    assert_eq!(external.read(&mut files).expect("a pipe"), 0, "its end");
    running.wait_for("socket-init");
    drop(feed);
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    assert!(client.read("inventory.img").expect("a reply").is_some());
    assert_eq!(client.read("pages-1.img").expect("a reply").map(|it| it.len()), Some(3 * MIB));
    drop(client);
    running.finish().succeeded();
}

#[test]
fn a_file_that_was_not_named_in_time_is_refused() {
    let named = metadata(&["pages-1.img"]).name("pages-1.img").data(&[7; MIB]);
    let begun = named.clone().finish();
    // CRIU was told that there is none, or was given another.
    for name in ["missing.img", "core-1.img"] {
        let rest = named.clone().file_eof().file(name, b"other").image_eof().finish();
        let mut early = Early::start("auto", &begun);
        let mut client = early.restore();
        let reader = Reader::of(&mut client, "pages-1.img");
        early.send(&rest[begun.len()..]);
        let finished = early.finish();
        finished.refused(1, name);
        let expected = "begins after all files were said to have been named";
        assert_eq!(finished.stderr, [format!("image-serve: {name}: {expected}")]);
        assert!(reader.all().len() < MIB, "{name}");
    }
}

#[test]
fn a_criu_that_leaves_early_has_restored_nothing() {
    let begun = metadata(&["pages-1.img"]).name("pages-1.img").data(&[7; 3 * MIB]).finish();
    let early = Early::start("auto", &begun);
    let mut client = early.restore();
    drop(client.open("pages-1.img").expect("a reply"));
    drop(client);
    let finished = early.running.finish();
    finished.refused_with_a_place("CRIU has gone");
}

#[test]
fn an_image_without_memory_or_in_a_file_is_there_before_criu_begins() {
    let dir = directory();
    let lines = |stdin: OwnedFd| {
        let running = filters::serve(dir.path()).stdin(stdin).start();
        running.wait_for("socket-init");
        let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
        assert!(client.read("inventory.img").expect("a reply").is_some());
        drop(client);
        let finished = running.finish();
        finished.succeeded();
        finished.progress.iter().map(|line| line.starts_with('{')).collect::<Vec<_>>()
    };
    let (stdin, feed) = pipe(None).expect("a pipe");
    let small = metadata(&["late.img"]).file("late.img", b"late").image_eof().finish();
    tests::pipeline::write_until_refused(feed, &small);
    assert_eq!(lines(stdin), [true, false], "an image without memory");
    let whole = metadata(&["pages-1.img"]).file("pages-1.img", &[7; MIB]).image_eof().finish();
    let path = dir.path().join("image");
    std::fs::write(&path, whole).expect("a file");
    assert_eq!(lines(File::open(&path).expect("a file").into()), [true, false], "a file");
}

#[test]
fn what_criu_reads_as_it_comes_is_not_held() {
    const CHUNK: usize = 2 * MIB;
    const CHUNKS: usize = 50;
    const MOST: usize = 40 * MIB;
    for store in STORES {
        let named = metadata(&["pages-1.img"]).name("pages-1.img");
        let markers = records(&named.clone().finish()).expect("markers").len() as u64;
        let mut early = Early::start(store, &named.data(&[7; CHUNK]).finish());
        let mut client = early.restore();
        let mut reader = Reader::of(&mut client, "pages-1.img");
        let mut most = 0;
        for chunk in 1..CHUNKS {
            let marker = Writer::new().seq(markers + chunk as u64);
            early.send(&marker.data(&[7; CHUNK]).finish());
            // A reader as fast as the network.
            reader.has((chunk * CHUNK).saturating_sub(24 * MIB));
            most = most.max(Held::by(early.running.pid(), GIVEN).total());
        }
        let end = Writer::new().seq(markers + CHUNKS as u64).file_eof().image_eof();
        early.send(&end.finish());
        early.end();
        assert_eq!(reader.all().len(), CHUNKS * CHUNK, "{store}");
        drop(client);
        println!("{store}: {} MiB of {}", most / MIB, CHUNKS * CHUNK / MIB);
        assert!(most < MOST, "{store}: held {most} bytes");
        early.finish().succeeded();
    }
}
