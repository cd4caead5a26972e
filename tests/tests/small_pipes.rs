//! `shard-merge` joined to `shard-split` shard to shard, over pipes of any size,
//! never hangs and gives the stream back.
//!
//! The filters grow the pipes that they are given. Here they must not: they run
//! without privileges, and the pipes of this user have used up what
//! `pipe-user-pages-soft` allows.

use std::os::fd::OwnedFd;
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use tests::criu::pipe;
use tests::filters::{merge_from, split_to};
use tests::pipeline::{Filter, collect_from, write_until_refused};
use tests::random::{Random, for_each_seed};
use tests::stream::{Files, Writer, read_stream};

const CASES: u64 = 1000;

/// Pipes that use up what the user may have, while they are open.
fn hog() -> Vec<(OwnedFd, OwnedFd)> {
    (0..72).map(|_| pipe(Some(1 << 20)).expect("a pipe")).collect()
}

fn capacity(pipe: &OwnedFd) -> i32 {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).expect("its capacity")
}

fn random_stream(random: &mut Random) -> (Vec<u8>, Files) {
    let mut writer = Writer::new();
    let mut files = Files::new();
    for number in 0..random.below(12) {
        let name = format!("{number}-{}.img", "n".repeat(random.magnitude_below(240)));
        let length = random.magnitude_below(200_000);
        let content = random.bytes(length);
        writer = writer.name(&name);
        let mut rest = &content[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((1 + random.magnitude_below(70_000)).min(rest.len()));
            writer = writer.data(now);
            rest = later;
        }
        writer = writer.file_eof();
        files.insert(name, content);
    }
    (writer.image_eof().finish(), files)
}

/// Joins the two over pipes of these capacities; the stream that comes out.
fn join(stream: &[u8], capacities: &[usize], stdin_capacity: usize) -> Vec<u8> {
    let shards = capacities.iter().map(|bytes| pipe(Some(*bytes)).expect("a pipe"));
    let (from, to): (Vec<_>, Vec<_>) = shards.unzip();
    let (stdin, feed) = pipe(Some(stdin_capacity)).expect("a pipe");
    let (collect, stdout) = pipe(Some(stdin_capacity)).expect("a pipe");
    let first = capacity(&to[0]);
    let split = split_to(to).unprivileged().stdin(stdin).start();
    let check = from[0].try_clone().expect("a descriptor");
    let merge = merge_from(from).unprivileged().stdout(stdout).start();
    let output = collect_from(collect);
    let stream = stream.to_vec();
    thread::spawn(move || write_until_refused(feed, &stream));
    let finished = [split, merge].map(|filter| filter.finish());
    assert_eq!(capacity(&check), first, "the pipe has grown: the test is in vain");
    for filter in finished {
        filter.succeeded();
    }
    output.join().expect("the stream")
}

#[test]
fn any_image_goes_from_shard_to_shard_through_pipes_of_any_size() {
    if !grows_not() {
        return println!("skipped: any_image_goes_from_shard_to_shard: pipes grow without limit");
    }
    let _hog = hog();
    for_each_seed(CASES, |seed| {
        let mut random = Random::new(seed);
        let (stream, files) = random_stream(&mut random);
        let any = |random: &mut Random| 4096 << random.below(6);
        let capacities: Vec<_> = (0..1 + random.below(16)).map(|_| any(&mut random)).collect();
        let joined = join(&stream, &capacities, any(&mut random));
        assert!(read_stream(&joined).expect("a whole stream") == files, "other files");
    });
}

#[test]
fn sixteen_pipes_of_one_page_join_sixteen() {
    if !grows_not() {
        return println!("skipped: sixteen_pipes_of_one_page_join_sixteen: pipes grow");
    }
    let _hog = hog();
    for length in [3, 5000, 1 << 20] {
        let content = Random::new(2).bytes(length);
        let stream = Writer::new().file("pages-1.img", &content).image_eof().finish();
        let joined = join(&stream, &[4096; 16], 4096);
        assert!(read_stream(&joined).expect("a whole stream")["pages-1.img"] == content);
    }
}

/// Names that fill more than a page, one after the other, with nobody who reads at first.
#[test]
fn markers_that_do_not_fit_hold_up_nobody() {
    let _hog = hog();
    let names = (0..200).map(|number| format!("{number}-{}", "n".repeat(240)));
    let stream = names.fold(Writer::new(), |writer, name| writer.file(&name, b"x"));
    let stream = stream.image_eof().finish();
    let joined = join(&stream, &[4096, 4096], 64 << 10);
    assert_eq!(read_stream(&joined), read_stream(&stream));
}

/// Whether an unprivileged filter leaves a pipe as small as it is.
fn grows_not() -> bool {
    let _hog = hog();
    let (shard, to) = pipe(Some(4096)).expect("a pipe");
    let collect = collect_from(shard.try_clone().expect("a descriptor"));
    let empty = Writer::new().image_eof().finish();
    let split: Filter = split_to([to]).unprivileged();
    split.run(&empty).succeeded();
    collect.join().expect("the shard");
    capacity(&shard) == 4096
}
