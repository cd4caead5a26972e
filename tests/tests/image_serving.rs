//! `image-serve` opposite several CRIUs that open files in any order, many at
//! once, read them partly, ask twice, or die: from every store.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};
use tests::criu::{RestoreClient, pipe, request};
use tests::filters::{self, assert_same_files};
use tests::pipeline::Running;
use tests::random::Random;
use tests::stream::{Files, Writer};

const MIB: usize = 1 << 20;
/// How the image is held; `file` is a file as stdin.
const STORES: [&str; 4] = ["auto", "pipe", "memory", "file"];

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

/// Starts `image-serve` with this stream and these arguments, and waits until
/// CRIU may come.
fn start(dir: &Path, store: &str, stream: &[u8], arguments: &[&str]) -> Running {
    let serving = start_unready(dir, store, stream, arguments);
    serving.wait_for("socket-init");
    serving
}

fn start_unready(dir: &Path, store: &str, stream: &[u8], arguments: &[&str]) -> Running {
    let serve = filters::serve(dir).args(arguments);
    if store != "file" {
        return filters::start_serve(serve.arg("--store").arg(store), stream);
    }
    let mut image = tempfile::tempfile().expect("a file");
    image.write_all(stream).expect("an image");
    std::io::Seek::rewind(&mut image).expect("a file");
    serve.stdin(image).start()
}

fn stream(files: &Files) -> Vec<u8> {
    let writer = files.iter().fold(Writer::new(), |writer, (name, content)| {
        content.chunks(MIB).fold(writer.name(name), Writer::data).file_eof()
    });
    writer.image_eof().finish()
}

fn connect(dir: &Path) -> RestoreClient {
    RestoreClient::connect(dir).expect("the socket is there")
}

fn open(client: &mut RestoreClient, name: &str) -> File {
    client.open(name).expect("a reply").unwrap_or_else(|| panic!("{name} isn't served"))
}

fn read(client: &mut RestoreClient, name: &str) -> Vec<u8> {
    rest(open(client, name))
}

fn rest(mut file: File) -> Vec<u8> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).expect("a pipe");
    content
}

/// Small ones, of all sizes around that to which files are kept, and large.
fn many_files(random: &mut Random) -> Files {
    let small = (0..20).map(|index| (format!("small-{index}.img"), 1 << index.min(17)));
    let limits = [(128 << 10) - 1, 128 << 10, (128 << 10) + 1, MIB, MIB + 1, 3 * MIB + 5];
    let limits = limits.into_iter().enumerate();
    let limits = limits.map(|(index, length)| (format!("limit-{index}.img"), length));
    let large = (0..8).map(|index| (format!("pages-{index}.img"), (index + 1) * MIB + 77));
    let inventory = [("inventory.img".to_string(), 77), ("empty.img".to_string(), 0)];
    let all = small.chain(limits).chain(large).chain(inventory);
    all.map(|(name, length)| (name, random.bytes(length))).collect()
}

#[test]
fn clients_open_files_in_any_order_and_read_them_as_they_like() {
    for store in STORES {
        for clients in 1..=4 {
            for seed in 0..2 {
                let mut random = Random::new(seed * 10 + clients);
                let files = many_files(&mut random);
                let dir = directory();
                let count = clients.to_string();
                let serving = start(dir.path(), store, &stream(&files), &["--clients", &count]);
                // Files that are handed out once, and by whom is chance.
                let left = Mutex::new(files.keys().cloned().collect::<BTreeSet<_>>());
                thread::scope(|scope| {
                    for client in 0..clients {
                        let mut random = Random::new(seed * 100 + client);
                        let (dir, files, left) = (dir.path(), &files, &left);
                        let name = format!("{store}, client {client} of {clients}, seed {seed}");
                        let client = thread::Builder::new().name(name);
                        let restore = move || any_restore(dir, files, left, &mut random);
                        client.spawn_scoped(scope, restore).expect("a thread");
                    }
                });
                serving.finish().succeeded();
            }
        }
    }
}

/// Takes files until none are left, several at once, in pieces.
fn any_restore(dir: &Path, files: &Files, left: &Mutex<BTreeSet<String>>, random: &mut Random) {
    struct Open<'a> {
        name: &'a str,
        file: File,
        found: Vec<u8>,
    }
    let mut client = connect(dir);
    assert_eq!(read(&mut client, "inventory.img"), files["inventory.img"]);
    let mut open: Vec<Open<'_>> = Vec::new();
    loop {
        let next = {
            let mut left = left.lock().expect("the names");
            let chosen = left.iter().nth(random.below(left.len().max(1))).cloned();
            // Small ones are there for everybody, and any number of times.
            chosen.inspect(|name| {
                if files[name].len() > 128 << 10 || random.one_in(3) {
                    left.remove(name);
                }
            })
        };
        if let Some(name) = next {
            let size = random.pick(&[None, Some(4096), Some(MIB)]);
            let file = client.open_sized(&name, size).expect("a reply");
            let (name, _) = files.get_key_value(&name).expect("one of the files");
            let file = file.unwrap_or_else(|| panic!("{name} isn't served"));
            open.push(Open { name, file, found: Vec::new() });
        } else if open.is_empty() {
            break;
        }
        if random.one_in(4) {
            assert!(client.open("missing.img").expect("a reply").is_none());
        }
        while open.len() > random.below(6) {
            let index = random.below(open.len());
            let Open { name, file, found } = &mut open[index];
            let mut piece = vec![0; 1 + random.below(MIB)];
            let length = file.read(&mut piece).expect("a pipe");
            let rest = files[*name].get(found.len()..).unwrap_or_default();
            assert!(rest.starts_with(&piece[..length]), "{name} differs");
            found.extend_from_slice(&piece[..length]);
            if length == 0 {
                assert!(*found == files[*name], "{name} ends early");
            }
            if length == 0 || random.one_in(30) {
                // Read to its end, or partly.
                open.swap_remove(index);
            }
        }
    }
}

/// A reader that has stopped, with any number of other things going on.
#[test]
fn a_client_that_never_reads_does_not_stop_the_others() {
    let mut random = Random::new(5);
    let files = many_files(&mut random);
    for store in STORES {
        let dir = directory();
        let serving = start(dir.path(), store, &stream(&files), &["--clients", "4"]);
        let mut stalled = connect(dir.path());
        let pipes = ["pages-7.img", "pages-6.img", "limit-3.img", "small-19.img"]
            .map(|name| stalled.open_sized(name, Some(4096)).expect("a reply").expect("served"));
        // One that says nothing, and one that stops within a request.
        let silent = connect(dir.path());
        let mut cut = connect(dir.path());
        let whole = request(b"inventory.img");
        cut.send_garbage(&(whole.len() as u32).to_le_bytes()).expect("serve reads");
        cut.send_garbage(&whole[..7]).expect("serve reads");

        let mut client = connect(dir.path());
        // One that has been promised a file, and does not send its pipe.
        assert!(stalled.ask("pages-5.img").expect("a reply"));
        for (name, content) in &files {
            if ["pages-7.img", "pages-6.img", "limit-3.img", "pages-5.img"].contains(&&**name) {
                continue;
            }
            assert!(read(&mut client, name) == *content, "{store}: {name} differs");
        }
        drop(client);
        // What has stopped may go on at any time.
        cut.send_garbage(&whole[7..]).expect("serve reads");
        let (read_end, write_end) = pipe(None).expect("a pipe");
        stalled.send_pipe(&write_end).expect("serve reads");
        drop(write_end);
        assert!(rest(read_end.into()) == files["pages-5.img"], "{store}: pages-5.img differs");
        let [pages_7, pages_6, limit_3, small_19] = pipes.map(rest);
        assert!(pages_7 == files["pages-7.img"], "{store}: pages-7.img differs");
        assert!(pages_6 == files["pages-6.img"], "{store}: pages-6.img differs");
        assert!(limit_3 == files["limit-3.img"], "{store}: limit-3.img differs");
        assert!(small_19 == files["small-19.img"], "{store}: small-19.img differs");
        drop((silent, stalled));
        let mut length = [0; 4];
        let (read_end, write_end) = pipe(None).expect("a pipe");
        cut.send_pipe(&write_end).expect("serve reads");
        drop(write_end);
        File::from(read_end).read_exact(&mut length).expect("inventory.img");
        assert_eq!(length, files["inventory.img"][..4]);
        drop(cut);
        serving.finish().succeeded();
    }
}

#[test]
fn waiting_for_a_client_takes_no_cpu_time() {
    let files = Files::from([
        ("inventory.img".into(), b"all".to_vec()),
        ("pages-1.img".into(), Random::new(1).bytes(20 * MIB)),
    ]);
    for store in STORES {
        let dir = directory();
        let serving = start(dir.path(), store, &stream(&files), &[]);
        let mut client = connect(dir.path());
        let mut stalled = open(&mut client, "pages-1.img");
        stalled.read_exact(&mut [0]).expect("a pipe");
        sleep(Duration::from_millis(50));
        let before = serving.cpu_ticks();
        sleep(Duration::from_millis(1000));
        let ticks = serving.cpu_ticks() - before;
        // Some 100 if it spins, and 30 beside others who do.
        assert!(ticks <= 12, "{store}: {ticks} ticks of CPU time while nobody reads");
        drop((read(&mut client, "inventory.img"), stalled, client));
        serving.finish().succeeded();
    }
}

#[test]
fn the_last_of_two_files_of_one_name_counts() {
    let mut random = Random::new(9);
    let [small, large, larger] = [500, 5 * MIB, 6 * MIB].map(|length| random.bytes(length));
    let cases: [(&[u8], &[u8]); 5] =
        [(&small, &large), (&large, &small), (&large, &larger), (&large, &[]), (&[], &large)];
    for store in STORES {
        for (first, second) in cases {
            let inventory = Writer::new().file("inventory.img", b"first");
            let twice = inventory.file("pages-1.img", first).file("pages-1.img", second);
            let stream = twice.file("inventory.img", b"last").image_eof().finish();
            let dir = directory();
            let serving = start(dir.path(), store, &stream, &[]);
            let mut client = connect(dir.path());
            assert_eq!(read(&mut client, "inventory.img"), b"last", "{store}");
            assert!(read(&mut client, "pages-1.img") == second, "{store}: the first one");
            drop(client);
            serving.finish().succeeded();
        }
    }
}

#[test]
fn files_that_interleave_in_the_stream_come_apart() {
    let mut random = Random::new(4);
    for store in STORES {
        let mut files = Files::new();
        let mut writer = Writer::new();
        for _ in 0..300 {
            let name = format!("pages-{}.img", random.below(6));
            let length = random.magnitude_below(MIB);
            let bytes = random.bytes(length);
            writer = writer.name(&name).data(&bytes);
            files.entry(name).or_default().extend_from_slice(&bytes);
        }
        for name in files.keys() {
            writer = writer.name(name).file_eof();
        }
        files.insert("inventory.img".into(), b"all".to_vec());
        let stream = writer.file("inventory.img", b"all").image_eof().finish();
        let dir = directory();
        let serving = start(dir.path(), store, &stream, &[]);
        let mut client = connect(dir.path());
        let found = files.keys().map(|name| (name.clone(), read(&mut client, name))).collect();
        assert_same_files(&found, &files, store);
        drop(client);
        serving.finish().succeeded();
    }
}

#[test]
fn a_large_file_that_is_gone_does_not_exist_and_is_named_at_the_end() {
    let mut random = Random::new(2);
    let files = many_files(&mut random);
    for store in ["auto", "pipe", "memory"] {
        let dir = directory();
        let serving = start(dir.path(), store, &stream(&files), &[]);
        let mut client = connect(dir.path());
        assert!(read(&mut client, "pages-3.img") == files["pages-3.img"], "{store}");
        let partly = open(&mut client, "pages-4.img");
        for name in ["pages-3.img", "pages-4.img"] {
            assert!(client.open(name).expect("a reply").is_none(), "{store}: {name} again");
        }
        // All else goes on.
        assert!(read(&mut client, "pages-5.img") == files["pages-5.img"], "{store}");
        assert!(read(&mut client, "inventory.img") == files["inventory.img"], "{store}");
        assert!(rest(partly) == files["pages-4.img"], "{store}");
        drop(client);
        let finished = serving.finish();
        finished.refused_with_a_place(store);
        assert!(finished.stderr[0].contains("pages-3.img"), "{:?}", finished.stderr);
    }
}

#[test]
fn a_criu_that_leaves_without_the_inventory_has_restored_nothing() {
    let files = many_files(&mut Random::new(6));
    for store in STORES {
        for clients in ["1", "2"] {
            let dir = directory();
            let serving = start(dir.path(), store, &stream(&files), &["--clients", clients]);
            let mut client = connect(dir.path());
            assert!(read(&mut client, "pages-0.img") == files["pages-0.img"]);
            drop(client);
            if clients == "2" {
                drop(connect(dir.path()));
            }
            let finished = serving.finish();
            finished.refused_with_a_place(store);
            assert!(finished.stderr[0].contains("inventory.img"), "{:?}", finished.stderr);
        }
    }
    // One of two that asks for it is enough.
    let dir = directory();
    let serving = start(dir.path(), "auto", &stream(&files), &["--clients", "2"]);
    let mut client = connect(dir.path());
    drop(connect(dir.path()));
    read(&mut client, "inventory.img");
    drop(client);
    serving.finish().succeeded();
}

/// CRIU asks fstat for the size of its nftables rules. Files of all sizes around those of pages,
/// of pipes and of what is kept.
#[test]
fn a_file_that_is_closed_unread_is_told_at_once_and_criu_is_hung_up_on() {
    const SIZES: [usize; 10] =
        [1, 59, 4096, 4097, 65_536, 65_537, 128 << 10, 300_000, MIB, 6 * MIB + 1];
    let mut random = Random::new(13);
    for store in STORES {
        for size in SIZES {
            let case = format!("{store}, {size} bytes");
            let files = Files::from([
                ("inventory.img".into(), b"all".to_vec()),
                ("nftables-9.img".into(), random.bytes(size)),
                ("pages-1.img".into(), random.bytes(2 * MIB)),
            ]);
            let dir = directory();
            let serving = start(dir.path(), store, &stream(&files), &["--clients", "2"]);
            let [mut client, mut other] = [connect(dir.path()), connect(dir.path())];
            read(&mut client, "inventory.img");
            let unread = open(&mut client, "nftables-9.img");
            let mut pages = open(&mut client, "pages-1.img");
            pages.read_exact(&mut [0]).expect("a pipe");
            drop(unread);
            serving.wait_for("unread nftables-9.img");
            let mut rest = Vec::new();
            pages.read_to_end(&mut rest).expect("a pipe");
            assert!(rest.len() + 1 < 2 * MIB, "{case}: the restore could be completed");
            assert!(client.ask("pages-1.img").is_err(), "{case}: it could go on");
            // It is not the other one's fault.
            assert_eq!(read(&mut other, "inventory.img"), b"all", "{case}");
            drop((client, other));
            let finished = serving.finish();
            finished.refused_with_a_place(&case);
            let message = &finished.stderr[0];
            assert!(message.contains("nftables-9.img: closed unread"), "{case}: {message}");
            assert!(message.contains("--directory"), "{case}: {message}");
        }
    }
}

/// Where iptables is the one on nftables, the rules of every network namespace hold at least the
/// lock that CRIU itself has put there to dump it. Connections need it.
#[test]
fn nothing_is_lost_with_rules_that_are_only_the_lock_of_criu() {
    const LOCK: &str = "table ip filter {
	chain CRIU {
		meta mark 0x0000c114 counter packets 0 bytes 0 accept
		counter packets 0 bytes 0 drop
	}
	chain INPUT {
		type filter hook input priority filter; policy accept;
		counter packets 0 bytes 0 jump CRIU
	}
}
";
    for store in STORES {
        let more = format!("{LOCK}table ip mine {{\n}}\n");
        let tcp = "tcp-stream-1.img";
        for (rules, other, is_lost) in
            [(LOCK, "fs-1.img", false), (&more, "fs-1.img", true), (LOCK, tcp, true)]
        {
            let files = Files::from([
                ("inventory.img".into(), b"all".to_vec()),
                ("nftables-9.img".into(), rules.as_bytes().to_vec()),
                (other.into(), b"other".to_vec()),
            ]);
            let dir = directory();
            let serving = start(dir.path(), store, &stream(&files), &[]);
            let mut client = connect(dir.path());
            read(&mut client, "inventory.img");
            drop(open(&mut client, "nftables-9.img"));
            if !is_lost {
                assert_eq!(read(&mut client, "inventory.img"), b"all", "{store}");
            }
            drop(client);
            match is_lost {
                true => serving.finish().refused_with_a_place(store),
                false => serving.finish().succeeded(),
            };
        }
    }
}

#[test]
fn a_file_of_which_a_byte_was_read_is_no_failure() {
    let mut random = Random::new(14);
    for store in STORES {
        for size in [2, 4096, 5000, 65_536, 300_000, 6 * MIB] {
            let files = Files::from([
                ("inventory.img".into(), b"all".to_vec()),
                ("empty.img".into(), Vec::new()),
                ("pages-1.img".into(), random.bytes(size)),
            ]);
            let dir = directory();
            let serving = start(dir.path(), store, &stream(&files), &[]);
            let mut client = connect(dir.path());
            drop(open(&mut client, "empty.img"));
            let mut pages = open(&mut client, "pages-1.img");
            pages.read_exact(&mut [0]).expect("a pipe");
            drop(pages);
            assert_eq!(read(&mut client, "inventory.img"), b"all", "{store}, {size} bytes");
            drop(client);
            serving.finish().succeeded();
        }
    }
}

/// CRIU's tasks have the pipes; its main process may be gone.
#[test]
fn files_that_are_open_are_filled_after_the_connection_has_ended() {
    let files = many_files(&mut Random::new(8));
    for store in STORES {
        let dir = directory();
        let serving = start(dir.path(), store, &stream(&files), &[]);
        let mut client = connect(dir.path());
        let pages = open(&mut client, "pages-7.img");
        read(&mut client, "inventory.img");
        drop(client);
        sleep(Duration::from_millis(50));
        assert!(serving.is_running(), "{store}: it has ended before its reader");
        assert!(rest(pages) == files["pages-7.img"], "{store}");
        serving.finish().succeeded();
    }
}

#[test]
fn a_client_that_dies_in_the_middle_does_not_end_the_others() {
    let files = many_files(&mut Random::new(8));
    for store in STORES {
        for death in ["within a request", "before its pipe", "half read", "nonsense"] {
            let dir = directory();
            let serving = start(dir.path(), store, &stream(&files), &["--clients", "3"]);
            let mut other = connect(dir.path());
            let mut pages = open(&mut other, "pages-7.img");
            let mut half = vec![0; files["pages-7.img"].len() / 2];
            pages.read_exact(&mut half).expect("a pipe");
            let mut client = connect(dir.path());
            match death {
                "within a request" => client.send_garbage(&[9, 0, 0]).expect("serve reads"),
                "before its pipe" => assert!(client.ask("pages-6.img").expect("a reply")),
                "nonsense" => client.send_garbage(&[0xff; 99]).expect("serve reads"),
                _ => open(&mut client, "pages-6.img").read_exact(&mut [0; 999]).expect("a pipe"),
            }
            drop(client);
            sleep(Duration::from_millis(20));
            // A third that comes later is served like the second.
            let mut third = connect(dir.path());
            assert!(read(&mut third, "pages-5.img") == files["pages-5.img"], "{store}, {death}");
            assert!(read(&mut other, "inventory.img") == files["inventory.img"]);
            half.extend(rest(pages));
            assert!(half == files["pages-7.img"], "{store}, {death}: pages-7.img differs");
            drop((other, third));
            let finished = serving.finish();
            match death {
                "half read" => _ = finished.succeeded(),
                _ => _ = finished.refused(1, death),
            }
        }
    }
}

#[test]
fn more_clients_than_announced_are_refused() {
    let files = many_files(&mut Random::new(8));
    let dir = directory();
    let serving = start(dir.path(), "auto", &stream(&files), &["--clients", "2"]);
    let mut clients = [connect(dir.path()), connect(dir.path())];
    read(&mut clients[0], "inventory.img");
    read(&mut clients[1], "inventory.img");
    let refused = RestoreClient::connect(dir.path());
    let refused = refused.and_then(|mut client| client.ask("inventory.img"));
    assert!(refused.is_err(), "a third client is served");
    drop(clients);
    serving.finish().succeeded();
}

#[test]
fn what_is_no_pipe_is_refused() {
    let files = many_files(&mut Random::new(8));
    let dir = directory();
    let serving = start(dir.path(), "auto", &stream(&files), &[]);
    let mut client = connect(dir.path());
    assert!(client.ask("pages-1.img").expect("a reply"));
    client.send_pipe(File::open("/dev/null").expect("a device")).expect("serve reads");
    drop(client);
    serving.finish().refused_with_a_place("not a pipe");
}

/// `files.img` with a TCP socket that listens on `port`, and fields that nobody
/// knows.
fn files_img(port: u16) -> Vec<u8> {
    let port = [port as u8 | 0x80, (port >> 7) as u8 | 0x80, (port >> 14) as u8];
    let mut socket = vec![1 << 3, 7, 5 << 3, 6, 6 << 3, 10, 7 << 3];
    socket.extend(port);
    socket.extend([0xfa, 1, 3, b'n', b'e', b'w']);
    let mut entry = vec![1 << 3, 4, 2 << 3, 9, 4 << 3 | 2, socket.len() as u8];
    entry.extend(socket);
    let mut file = 0x5456_4319_u32.to_le_bytes().to_vec();
    file.extend(0x5630_3138_u32.to_le_bytes());
    file.extend((entry.len() as u32).to_le_bytes());
    file.extend(entry);
    file
}

#[test]
fn listening_ports_move_on_the_way_to_criu() {
    let image = Files::from([
        ("files.img".into(), files_img(20_000)),
        ("inventory.img".into(), b"all".to_vec()),
        ("pages-1.img".into(), Random::new(1).bytes(2 * MIB)),
    ]);
    for store in STORES {
        let dir = directory();
        let moves = ["--tcp-listen-remap", "20000:30000"];
        let serving = start(dir.path(), store, &stream(&image), &moves);
        let mut client = connect(dir.path());
        for _ in 0..2 {
            assert_eq!(read(&mut client, "files.img"), files_img(30_000), "{store}");
        }
        assert_eq!(read(&mut client, "inventory.img"), b"all");
        drop(client);
        serving.finish().succeeded();

        let moves = ["--tcp-listen-remap", "20001:30000"];
        let finished = start_unready(dir.path(), store, &stream(&image), &moves).finish();
        finished.refused_with_a_place(store);
        let message = &finished.stderr[0];
        assert!(message.contains("20001") && message.contains("20000"), "{message}");

        // Ports and no files.
        let bare = Writer::new().file("inventory.img", b"all").image_eof().finish();
        let finished = start_unready(dir.path(), store, &bare, &moves).finish();
        finished.refused_with_a_place(store);
    }
    let twice = ["--tcp-listen-remap", "1:2,1:3"];
    start_unready(directory().path(), "auto", &[], &twice).finish().refused(2, "named twice");
}

#[test]
fn nothing_is_served_of_an_image_that_is_not_whole() {
    let files = many_files(&mut Random::new(8));
    let whole = stream(&files);
    for store in STORES {
        for cut in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
            let dir = directory();
            let serving = start_unready(dir.path(), store, &whole[..cut], &[]);
            let start = Instant::now();
            let finished = serving.finish();
            finished.refused_with_a_place(&format!("{store}, cut at {cut}"));
            assert!(!finished.progress.iter().any(|line| line == "socket-init"));
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}
