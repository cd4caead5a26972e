//! What `image-serve` holds, and where: in pipes, in memory, in the file that
//! it reads; under limits; never much more than the image; given back early.
//!
//! The measurements are printed: `cargo test --test image_store -- --nocapture`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;
use tempfile::{TempDir, tempdir};
use tests::criu::{RestoreClient, pipe};
use tests::filters;
use tests::memory::{Held, peak};
use tests::pipeline::{Filter, Finished, Running, wait_until, write_until_refused};
use tests::random::Random;
use tests::stream::{Body, Files, Writer};

const MIB: usize = 1 << 20;
const STORES: [&str; 3] = ["auto", "pipe", "memory"];
/// Descriptors up to that of the progress lines are not the store's.
const GIVEN: i32 = 9;
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// `ulimit -n 64`, soft and hard.
const FEW_DESCRIPTORS: [&str; 3] = ["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""];
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

/// The stream of an image, in chunks of so many bytes.
fn stream(files: &Files, chunk: usize) -> Vec<u8> {
    let writer = files.iter().fold(Writer::new(), |writer, (name, content)| {
        content.chunks(chunk).fold(writer.name(name), Writer::data).file_eof()
    });
    writer.image_eof().finish()
}

/// An image with one large file of `length` bytes, and what belongs to it.
fn image(length: usize) -> Files {
    let mut random = Random::new(length as u64);
    Files::from([
        ("core-1.img".into(), random.bytes(700)),
        ("empty.img".into(), Vec::new()),
        ("inventory.img".into(), random.bytes(77)),
        ("pages-1.img".into(), random.bytes(length)),
    ])
}

fn serve(dir: &Path, store: &str) -> Filter {
    filters::serve(dir).arg("-v").arg("--store").arg(store).time_limit(TIME_LIMIT)
}

fn serve_by(wrapper: &[&str], dir: &Path, store: &str) -> Filter {
    let filter = Filter::under(wrapper, "image-serve").arg("-D").arg(dir).progress_apart();
    filter.arg("-v").arg("--store").arg(store).time_limit(TIME_LIMIT)
}

/// Starts it with this stream, and waits until all of it is held.
fn hold(filter: Filter, stream: &[u8]) -> Running {
    let serving = filters::start_serve(filter, stream);
    serving.wait_for("socket-init");
    serving
}

/// Restores all of the image, and checks it. What `image-serve` says with `-v`.
fn fetch(dir: &Path, serving: Running, files: &Files, case: &str) -> String {
    let mut client = RestoreClient::connect(dir).expect("the socket is there");
    for (name, content) in files.iter().rev() {
        let found = client.read(name).expect("a reply");
        assert!(found.as_ref() == Some(content), "{case}: {name} differs");
    }
    drop(client);
    said(&serving.finish(), case)
}

/// The one line of `-v`.
fn said(finished: &Finished, case: &str) -> String {
    finished.succeeded();
    assert_eq!(finished.stderr.len(), 1, "{case}: {:?}", finished.stderr);
    finished.stderr[0].clone()
}

/// The bytes in pipes and in memory, of a line of `-v`, as far as it tells them.
fn numbers(said: &str) -> [usize; 2] {
    let (_, amounts) = said.split_once("holding ").expect("what is held");
    let amount = |text: &str| {
        let (number, unit) = text.split_once(' ').expect("a number and its unit");
        let unit = ["bytes", "kB", "MB", "GB"].iter().position(|name| *name == unit);
        let factor = 1000_f64.powi(unit.expect("a unit") as i32);
        (number.parse::<f64>().expect("a number") * factor) as usize
    };
    let amounts = amounts.strip_suffix(" in memory").expect("two amounts").split(" in pipes, ");
    let amounts = amounts.map(amount).collect::<Vec<_>>();
    amounts.try_into().unwrap_or_else(|_| panic!("two amounts in {said:?}"))
}

/// Whether these are as many bytes as were said, within the last digit.
fn is_all(numbers: [usize; 2], length: usize) -> bool {
    numbers.iter().sum::<usize>().abs_diff(length) <= 200_000
}

fn is_root(test: &str) -> bool {
    let root = Uid::effective().is_root();
    if !root {
        println!("skipped: {test}: only root can become another user");
    }
    root
}

/// How the upstream program writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As fast as it can: small writes meet in one page.
    Eager,
    /// Each write only when the last was read, so that it has a page of its own; the first
    /// [`LOCKED`] of them.
    Lockstep,
}

/// Were each of these to keep its page, more than is allowed would be held, for all sizes of
/// writes below a page.
const LOCKED: usize = 5000;

/// `stdin` is the other end, to see whether it is empty.
fn feed(feed: &File, stdin: &OwnedFd, stream: &[u8], size: usize, pace: Pace) {
    let mut feed = feed;
    for (index, piece) in stream.chunks(size).enumerate() {
        feed.write_all(piece).expect("serve reads");
        while pace == Pace::Lockstep && index < LOCKED && is_readable(stdin) {
            // Not a spin: on a busy machine that would keep the reader waiting.
            sleep(Duration::from_micros(10));
        }
    }
}

fn is_readable(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("a pipe") > 0
}

/// What a program holds that holds nothing: the program itself.
fn at_rest(store: &str) -> usize {
    let dir = directory();
    let files = Files::from([("inventory.img".into(), b"all".to_vec())]);
    let serving = hold(serve(dir.path(), store), &stream(&files, MIB));
    let held = Held::by(serving.pid(), GIVEN);
    fetch(dir.path(), serving, &files, "at rest");
    held.total()
}

#[test]
fn what_is_held_is_at_most_a_quarter_more_than_the_image() {
    let sizes = [1, 100, 1000, 4096, 4097, 6000, 13_000, 17_000, 65_536, 100_000, MIB, 16 * MIB];
    println!("store  writes of         image   most while loading   then (of it in pipes)");
    for store in STORES {
        let base = at_rest(store);
        for pace in [Pace::Eager, Pace::Lockstep] {
            for size in sizes {
                held_is_bounded(store, base, size, pace);
            }
        }
    }
}

fn held_is_bounded(store: &str, base: usize, size: usize, pace: Pace) {
    let length = match size {
        1 => MIB / 2,
        100 => 12 * MIB,
        2..65_536 => 20 * MIB,
        _ => 40 * MIB,
    };
    let name = if pace == Pace::Eager { "eager" } else { "lockstep" };
    let case = format!("--store={store}, {name} writes of {size}");
    let files = image(length);
    let stream = stream(&files, 4 * MIB);
    let dir = directory();
    let (stdin, feeding) = pipe(None).expect("a pipe for stdin");
    let shared = stdin.try_clone().expect("a duplicate");
    let serving = serve(dir.path(), store).stdin(stdin).start();
    let feeder = {
        let stream = stream.clone();
        thread::spawn(move || feed(&File::from(feeding), &shared, &stream, size, pace))
    };
    let mut most = 0;
    while !feeder.is_finished() {
        most = most.max(Held::by(serving.pid(), GIVEN).total());
        sleep(Duration::from_millis(15));
    }
    feeder.join().expect("all is fed");
    serving.wait_for("socket-init");
    let held = Held::by(serving.pid(), GIVEN);
    most = most.max(held.total());
    let [above, most] = [held.total(), most].map(|bytes| bytes.saturating_sub(base));
    let mib = |bytes: usize| bytes as f64 / MIB as f64;
    let ratio = |bytes: usize| bytes as f64 / length as f64;
    println!(
        "{store:6} {name:8} {size:9} {:6.1} MiB {:6.1} MiB = {:.3} {:6.1} MiB = {:.3} ({:.1} MiB)",
        mib(length),
        mib(most),
        ratio(most),
        mib(above),
        ratio(above),
        mib(held.in_pipes),
    );
    // 256 KiB for the heap's own grain; while it loads, one pipe of 1 MiB whose
    // pages may turn out to be half empty.
    assert!(above <= length * 5 / 4 + (256 << 10), "{case}: {above} bytes for {length}");
    assert!(most <= length * 5 / 4 + MIB + (256 << 10), "{case}: {most} bytes for {length}");
    fetch(dir.path(), serving, &files, &case);
}

#[test]
fn memory_is_given_back_while_criu_reads() {
    const LENGTH: usize = 96 * MIB;
    let files = image(LENGTH);
    let stream = stream(&files, 4 * MIB);
    for store in STORES {
        let base = at_rest(store);
        let dir = directory();
        let serving = hold(serve(dir.path(), store), &stream);
        let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
        let mut pages = client.open("pages-1.img").expect("a reply").expect("pages are served");
        let mut part = vec![0; LENGTH / 4];
        for quarter in 1..4 {
            pages.read_exact(&mut part).expect("a pipe");
            let left = LENGTH * (4 - quarter) / 4;
            // One region of 8 MiB is freed as a whole.
            let most = left * 5 / 4 + 8 * MIB;
            let held = || Held::by(serving.pid(), GIVEN).total().saturating_sub(base);
            wait_until(&format!("--store={store}: {most} bytes for {left}"), || held() <= most);
            println!("--store={store}: {} MiB left, {} MiB held", left / MIB, held() / MIB);
        }
        drop((pages, client.read("inventory.img").expect("a reply")));
        drop(client);
        serving.finish().succeeded();
    }
}

#[test]
fn with_pipes_the_program_itself_stays_small() {
    // `HUGE=4096` for 4 GiB: the number must not depend on it.
    let mib = std::env::var("HUGE").ok().and_then(|value| value.parse().ok()).unwrap_or(600);
    let dir = directory();
    let (stdin, feeding) = pipe(Some(MIB)).expect("a pipe for stdin");
    let serving = serve(dir.path(), "pipe").stdin(stdin).start();
    let chunk = Random::new(1).bytes(4 * MIB);
    let mut feeding = File::from(feeding);
    let mut seq = 0;
    let mut write = |body: &Body, payload: &[u8]| {
        let marker = Writer::new().seq(seq).marker(body).finish();
        seq += 1;
        feeding.write_all(&marker).expect("serve reads");
        feeding.write_all(payload).expect("serve reads");
    };
    write(&Body::Filename(b"pages-1.img".to_vec()), &[]);
    for _ in 0..mib / 4 {
        write(&Body::FileData(chunk.len() as u32), &chunk);
    }
    write(&Body::FileEof, &[]);
    write(&Body::Filename(b"inventory.img".to_vec()), &[]);
    write(&Body::FileEof, &[]);
    write(&Body::ImageEof, &[]);
    drop(feeding);
    serving.wait_for("socket-init");
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    client.read("inventory.img").expect("a reply").expect("it is served");
    let mut pages = client.open("pages-1.img").expect("a reply").expect("pages are served");
    let mut found = vec![0; chunk.len()];
    for _ in 0..mib / 4 {
        pages.read_exact(&mut found).expect("a pipe");
        assert!(found == chunk, "pages-1.img differs");
    }
    assert_eq!(pages.read(&mut found).expect("a pipe"), 0, "more than there was");
    let peak = peak(serving.pid());
    println!("peak RSS for {mib} MiB in pipes: {:.1} MB", peak as f64 / 1e6);
    assert!(peak < 10_000_000, "{peak} bytes");
    drop(client);
    serving.finish().succeeded();
}

#[test]
fn verbose_says_where_the_image_rests() {
    const LENGTH: usize = 16 * MIB;
    let files = image(LENGTH);
    for (store, in_pipes) in [("pipe", true), ("memory", false), ("auto", true)] {
        let dir = directory();
        let serving = hold(serve(dir.path(), store), &stream(&files, MIB));
        let said = fetch(dir.path(), serving, &files, store);
        let [pipes, memory] = numbers(&said);
        assert!(is_all([pipes, memory], LENGTH + 777), "{said}");
        assert_eq!(pipes > LENGTH / 2, in_pipes, "{said}");
    }
}

#[test]
fn a_file_as_stdin_is_only_indexed_and_any_file_may_be_asked_for_again() {
    const LENGTH: usize = 64 * MIB;
    let files = image(LENGTH);
    let dir = directory();
    let path = dir.path().join("image");
    fs::write(&path, stream(&files, 4 * MIB)).expect("an image");
    let images = dir.path().join("restore");
    fs::create_dir(&images).expect("a directory");
    let serving = serve(&images, "auto").stdin(File::open(&path).expect("the image")).start();
    serving.wait_for("socket-init");
    let held = Held::by(serving.pid(), GIVEN);
    println!("a file of {} MiB as stdin: {held:?}", LENGTH / MIB);
    assert!(held.total() < 6 * MIB, "{held:?}");
    let mut client = RestoreClient::connect(&images).expect("the socket is there");
    for _ in 0..3 {
        let found = client.read("pages-1.img").expect("a reply");
        assert!(found.as_ref() == Some(&files["pages-1.img"]), "pages-1.img differs");
    }
    drop(client.read("inventory.img"));
    drop(client);
    assert!(said(&serving.finish(), "a file").contains("stay in the file"));
}

#[test]
fn an_image_in_a_file_may_begin_anywhere_in_it() {
    let files = image(2 * MIB);
    let dir = directory();
    let path = dir.path().join("image");
    fs::write(&path, [vec![7; 4321], stream(&files, MIB)].concat()).expect("an image");
    let mut file = File::open(&path).expect("the image");
    file.read_exact(&mut [0; 4321]).expect("what comes before");
    let serving = serve(dir.path(), "auto").stdin(file).start();
    serving.wait_for("socket-init");
    fetch(dir.path(), serving, &files, "with an offset");
}

#[test]
fn a_socket_as_stdin_is_held_like_a_pipe() {
    let files = image(24 * MIB);
    let stream = stream(&files, MIB);
    for store in STORES {
        for size in [100, 5000, 1 << 20] {
            for kind in ["unix", "tcp"] {
                let case = format!("{kind}, --store={store}, writes of {size}");
                let (stdin, mut far): (OwnedFd, File) = match kind {
                    "unix" => {
                        let (near, far) = UnixStream::pair().expect("a pair");
                        (near.into(), OwnedFd::from(far).into())
                    }
                    _ => {
                        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
                        let address = listener.local_addr().expect("an address");
                        let far = TcpStream::connect(address).expect("a connection");
                        far.set_nodelay(true).expect("an option");
                        let near = listener.accept().expect("a connection").0;
                        (near.into(), OwnedFd::from(far).into())
                    }
                };
                let dir = directory();
                let base = at_rest(store);
                let serving = serve(dir.path(), store).stdin(stdin).start();
                for piece in stream.chunks(size) {
                    far.write_all(piece).expect("serve reads");
                }
                drop(far);
                serving.wait_for("socket-init");
                let held = Held::by(serving.pid(), GIVEN).total().saturating_sub(base);
                println!("{case}: {:.3} of the image", held as f64 / (24 * MIB) as f64);
                assert!(held <= 24 * MIB * 5 / 4 + (256 << 10), "{case}: {held} bytes");
                fetch(dir.path(), serving, &files, &case);
            }
        }
    }
}

#[test]
fn a_non_blocking_stdin_is_waited_for_and_left_as_it_is() {
    let files = image(3 * MIB);
    let stream = stream(&files, MIB);
    for nonblocking in [false, true] {
        let dir = directory();
        let (stdin, feeding) = pipe(None).expect("a pipe for stdin");
        if nonblocking {
            fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
        }
        let shared = stdin.try_clone().expect("a duplicate");
        let serving = serve(dir.path(), "auto").stdin(stdin).start();
        let mut feeding = File::from(feeding);
        for piece in stream.chunks(MIB / 2) {
            feeding.write_all(piece).expect("serve reads");
            sleep(Duration::from_millis(5));
        }
        drop(feeding);
        serving.wait_for("socket-init");
        let flags = fcntl(&shared, FcntlArg::F_GETFL).expect("flags");
        assert_eq!(flags & OFlag::O_NONBLOCK.bits() != 0, nonblocking, "its flags were changed");
        fetch(dir.path(), serving, &files, "non-blocking");
    }
}

#[test]
fn an_image_comes_through_cat_and_pv() {
    let files = image(32 * MIB);
    let dir = directory();
    let path = dir.path().join("image");
    fs::write(&path, stream(&files, 4 * MIB)).expect("an image");
    for upstream in ["cat", "pv"] {
        for store in STORES {
            let images = directory();
            let base = at_rest(store);
            let (stdin, stdout) = pipe(None).expect("a pipe for stdin");
            let command = Command::new(upstream)
                .stdin(File::open(&path).expect("the image"))
                .stdout(stdout)
                .stderr(Stdio::null())
                .spawn();
            let Ok(mut upstream_child) = command else {
                println!("skipped: an_image_comes_through_cat_and_pv: no {upstream} here");
                continue;
            };
            let serving = serve(images.path(), store).stdin(stdin).start();
            serving.wait_for("socket-init");
            assert!(upstream_child.wait().expect("its end").success(), "{upstream}");
            let held = Held::by(serving.pid(), GIVEN).total().saturating_sub(base);
            let case = format!("{upstream}, --store={store}");
            println!("{case}: {:.3} of the image", held as f64 / (32 * MIB) as f64);
            assert!(held <= 32 * MIB * 5 / 4 + (256 << 10), "{case}: {held} bytes");
            fetch(images.path(), serving, &files, &case);
        }
    }
}

#[test]
fn with_few_descriptors_the_rest_is_held_in_memory() {
    const LENGTH: usize = 80 * MIB;
    let files = image(LENGTH);
    let stream = stream(&files, 4 * MIB);
    for store in ["auto", "memory"] {
        let dir = directory();
        let serving = hold(serve_by(&FEW_DESCRIPTORS, dir.path(), store), &stream);
        let said = fetch(dir.path(), serving, &files, store);
        println!("ulimit -n 64, --store={store}: {said}");
        let [pipes, memory] = numbers(&said);
        assert!(is_all([pipes, memory], LENGTH + 777), "{said}");
        assert_eq!(pipes > 0, store == "auto", "{said}");
    }
}

/// What is not filled takes no address space either, which `ulimit -v` and strict
/// overcommitting count. And a program may have some 65,000 mappings.
#[test]
fn many_files_of_middle_size_take_little_address_space_and_few_mappings() {
    const LITTLE: [&str; 3] = ["sh", "-c", "ulimit -v 524288 && exec \"$0\" \"$@\""];
    const FILES: usize = 200;
    let mut random = Random::new(4);
    for (size, store) in [(100_000, "auto"), (200_000, "auto"), (200_000, "memory")] {
        let mut files = image(MIB);
        files.extend((0..FILES).map(|index| (format!("pages-{index}.img"), random.bytes(size))));
        let stream = stream(&files, MIB);
        let dir = directory();
        let serving = hold(serve_by(&LITTLE, dir.path(), store), &stream);
        let maps = fs::read_to_string(format!("/proc/{}/maps", serving.pid())).expect("its maps");
        let mappings = maps.lines().count();
        assert!(mappings < FILES / 2, "{mappings} mappings for {FILES} files of {size} bytes");
        fetch(dir.path(), serving, &files, store);
    }
}

/// More files than descriptors are left: pipes of the store are given up, those too
/// of which CRIU has read a part.
#[test]
fn with_few_descriptors_many_files_can_be_open_at_once() {
    let mut random = Random::new(3);
    let mut files = image(MIB);
    files.extend((0..45).map(|index| (format!("pages-{index}.img"), random.bytes(6 * MIB))));
    let stream = stream(&files, 4 * MIB);
    let dir = directory();
    let serving = hold(serve_by(&FEW_DESCRIPTORS, dir.path(), "auto"), &stream);
    let mut client = RestoreClient::connect(dir.path()).expect("the socket is there");
    let open: Vec<_> = files
        .iter()
        .map(|(name, content)| {
            let mut file = client.open(name).expect("a reply").expect("it is served");
            let mut found = vec![0; content.len().min(300_000)];
            file.read_exact(&mut found).expect("a pipe");
            (name, content, file, found)
        })
        .collect();
    for (name, content, mut file, mut found) in open {
        file.read_to_end(&mut found).expect("a pipe");
        assert!(found == *content, "{name} differs");
    }
    drop(client);
    serving.finish().succeeded();
}

/// All of them together are too large, and each is small.
#[test]
fn small_files_that_memory_does_not_suffice_for_are_refused_plainly() {
    const LITTLE: [&str; 3] = ["sh", "-c", "ulimit -v 131072 && exec \"$0\" \"$@\""];
    let mut random = Random::new(12);
    let content = random.bytes(100_000);
    let files: Files =
        (0..3000).map(|index| (format!("core-{index}.img"), content.clone())).collect();
    let dir = directory();
    let serving = filters::start_serve(serve_by(&LITTLE, dir.path(), "auto"), &stream(&files, MIB));
    let finished = serving.finish();
    finished.refused_with_a_place("small files");
    assert!(finished.stderr[0].ends_with("cannot be held: Cannot allocate memory"), "{finished:?}");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "the socket is there");
}

/// A file that came often: those that don't count hold no pipes.
#[test]
fn files_that_are_replaced_take_no_descriptors() {
    const TIMES: usize = 60;
    let files = image(2 * MIB);
    let mut writer = Writer::new();
    for _ in 0..TIMES {
        writer = writer.file("pages-1.img", &files["pages-1.img"]);
    }
    let writer = files.iter().fold(writer, |writer, (name, content)| writer.file(name, content));
    let stream = writer.image_eof().finish();
    for store in ["auto", "pipe"] {
        let dir = directory();
        let serving = hold(serve_by(&FEW_DESCRIPTORS, dir.path(), store), &stream);
        let said = fetch(dir.path(), serving, &files, store);
        let [pipes, _] = numbers(&said);
        assert!(pipes > 0, "--store={store}: {said}");
    }
}

#[test]
fn pipes_that_run_out_are_an_error_where_only_pipes_will_do() {
    let stream = stream(&image(80 * MIB), 4 * MIB);
    let dir = directory();
    let serving = filters::start_serve(serve_by(&FEW_DESCRIPTORS, dir.path(), "pipe"), &stream);
    let finished = serving.finish();
    finished.refused_with_a_place("ulimit -n 64");
    println!("{}", finished.stderr[0]);
    assert!(finished.stderr[0].contains("pages-1.img: no descriptor"), "{:?}", finished.stderr);
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "the socket is there");
}

/// A directory and a copy of the program that nobody can use.
fn for_nobody() -> TempDir {
    let dir = directory();
    chown(dir.path(), Some(65534), Some(65534)).expect("a directory for nobody");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    dir
}

/// Those of an unprivileged user may have 64 MiB of pipes in all.
#[test]
fn with_few_page_slots_the_rest_is_held_in_memory() {
    const LENGTH: usize = 160 * MIB;
    if !is_root("with_few_page_slots_the_rest_is_held_in_memory") {
        return;
    }
    let soft = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").expect("a limit");
    let limit = soft.trim().parse::<usize>().expect("a number of pages") * 4096;
    if limit == 0 || limit > LENGTH {
        println!("skipped: with_few_page_slots…: pipe-user-pages-soft is {}", soft.trim());
        return;
    }
    let files = image(LENGTH);
    let stream = stream(&files, 4 * MIB);
    let dir = for_nobody();
    let base = at_rest("auto");
    let serving = hold(serve_by(&NOBODY, dir.path(), "auto"), &stream);
    let held = Held::by(serving.pid(), GIVEN).total().saturating_sub(base);
    println!("as nobody: {:.3} of the image", held as f64 / LENGTH as f64);
    assert!(held <= LENGTH * 5 / 4, "{held} bytes");
    let said = fetch(dir.path(), serving, &files, "as nobody");
    println!("as nobody: {said}");
    let [pipes, memory] = numbers(&said);
    assert!(is_all([pipes, memory], LENGTH + 777), "{said}");
    // Some slots are left for CRIU's own pipes.
    assert!(pipes > limit / 2 && pipes + 7 * MIB <= limit, "{said}");

    // The same user, and pipes only.
    let dir = for_nobody();
    let serving = filters::start_serve(serve_by(&NOBODY, dir.path(), "pipe"), &stream);
    let finished = serving.finish();
    println!("{:?}", finished.stderr);
    finished.refused_with_a_place("too few page slots");
    assert!(finished.stderr[0].contains("pages-1.img: pipes come too small"));
}

/// A writer that leaves its pages half empty at times, which makes one file rest
/// in several places.
#[test]
fn a_file_may_rest_partly_here_and_partly_there() {
    const LENGTH: usize = 120 * MIB;
    let files = image(LENGTH);
    let stream = stream(&files, 3 * MIB + 123);
    for store in STORES {
        let dir = directory();
        let (stdin, feeding) = pipe(Some(MIB)).expect("a pipe for stdin");
        let shared = stdin.try_clone().expect("a duplicate");
        let serving = serve(dir.path(), store).stdin(stdin).start();
        let mut random = Random::new(11);
        let mut rest = &stream[..];
        let feeding = File::from(feeding);
        while !rest.is_empty() {
            // Some MiB in one go, then as many in drops.
            let (now, later) = rest.split_at(rest.len().min(MIB + random.below(16 * MIB)));
            feed(&feeding, &shared, now, 4 * MIB, Pace::Eager);
            let (now, later) = later.split_at(later.len().min(random.below(4 * MIB)));
            feed(&feeding, &shared, now, 3000, Pace::Lockstep);
            rest = later;
        }
        drop(feeding);
        serving.wait_for("socket-init");
        println!("mixed writes: {}", fetch(dir.path(), serving, &files, store));
    }
}

#[test]
fn a_client_need_not_wait_for_the_image_to_load() {
    let files = image(2 * MIB);
    let dir = directory();
    let (stdin, feeding) = pipe(None).expect("a pipe for stdin");
    let serving = serve(dir.path(), "auto").stdin(stdin).start();
    let start = Instant::now();
    let mut client = loop {
        match RestoreClient::connect(dir.path()) {
            Ok(client) => break client,
            Err(error) => assert!(start.elapsed() < TIME_LIMIT, "{error}"),
        }
    };
    let stream = stream(&files, MIB);
    let feeder = thread::spawn(move || write_until_refused(feeding, &stream));
    let found = client.read("pages-1.img").expect("a reply");
    assert!(found.as_ref() == Some(&files["pages-1.img"]), "pages-1.img differs");
    assert!(client.read("inventory.img").expect("a reply").is_some());
    drop(client);
    feeder.join().expect("all is fed");
    serving.finish().succeeded();
}
