//! `shard-split --metadata-first`, and what `shard-merge` makes of its shards: the metadata goes
//! first, wherever it is, and waits for nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use tempfile::tempdir;
use tests::criu::pipe;
use tests::filters::{self, merge_from, split_to};
use tests::pipeline::{Filter, Finished, collect_from};
use tests::random::Random;
use tests::stream::{Body, Files, Writer, looks_complete, read_shards, read_stream, records};

const ALL_NAMED: u64 = 103;
const METADATA: u64 = 104;
const SPLIT_ID: u64 = 106;

const MEMORY: usize = 3 << 20;

/// An image as CRIU writes it: memory among small files, and `inventory.img` at the end.
fn image(memory: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let pages = random.bytes(memory);
    let mut writer = Writer::new().file("cpuinfo.img", b"cpu").name("pages-1.img");
    for (index, chunk) in pages.chunks(100_000).enumerate() {
        let core = format!("core-{index}.img");
        writer = writer.data(chunk).file(&core, &random.bytes(700)).name("pages-1.img");
    }
    let writer = writer.file_eof().file("pagemap-1.img", &random.bytes(30_000));
    writer.file("empty.img", b"").file("inventory.img", b"all").image_eof().finish()
}

/// Runs `shard-split -m`.
fn split(stream: &[u8], count: usize) -> (Finished, Vec<Vec<u8>>) {
    let (outputs, collecting): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (read_end, write_end) = pipe(None).expect("a pipe for a shard");
            (write_end, collect_from(read_end))
        })
        .unzip();
    let finished = split_to(outputs).arg("-m").run(stream);
    let shards = collecting.into_iter().map(|shard| shard.join().expect("a shard")).collect();
    (finished, shards)
}

fn shards_of(stream: &[u8], count: usize) -> Vec<Vec<u8>> {
    let (finished, shards) = split(stream, count);
    finished.succeeded();
    shards
}

/// The names in some shards, and the content that they have of each file.
fn content(shards: &[Vec<u8>]) -> Files {
    let mut files = Files::new();
    let mut current = String::new();
    let records = shards.iter().flat_map(|shard| records(shard).expect("markers"));
    let mut records: Vec<_> = records.collect();
    records.sort_by_key(|record| record.seq);
    for record in records {
        match record.body {
            Body::Filename(name) => {
                current = String::from_utf8(name).expect("a name");
                files.entry(current.clone()).or_default();
            }
            Body::FileData(_) => {
                files.get_mut(&current).expect("a name before").extend_from_slice(record.payload);
            }
            Body::FileEof | Body::ImageEof => {}
        }
    }
    files
}

#[test]
fn the_first_shard_has_the_small_files_and_the_names_of_all_others() {
    let stream = image(MEMORY);
    let files = read_stream(&stream).expect("an image");
    let shards = shards_of(&stream, 4);
    assert_eq!(read_shards(&shards), Ok(files.clone()), "to who knows nothing of it");
    let metadata = content(&shards[..1]);
    assert!(metadata.keys().eq(files.keys()), "not all are named");
    for (name, content) in &metadata {
        let expected: &[u8] = if name == "pages-1.img" { b"" } else { &files[name] };
        assert!(content == expected, "{name}");
    }
    assert!(content(&shards[1..])["pages-1.img"] == files["pages-1.img"]);
    let others: Vec<_> = shards[1..].iter().map(Vec::len).collect();
    assert!(others.iter().all(|bytes| *bytes > MEMORY / 10), "not balanced: {others:?}");
}

#[test]
fn the_shards_say_which_split_and_which_of_them_is_the_metadata() {
    let fields = |shard: &[u8]| {
        let records = records(shard).expect("markers");
        let (first, others) = records.split_first().expect("a marker");
        let named = others.iter().filter(|record| record.skipped.contains(&ALL_NAMED)).count();
        (&first.skipped & &BTreeSet::from([METADATA, SPLIT_ID]), named)
    };
    let shards = shards_of(&image(MEMORY), 3);
    let [first, second, third] = [0, 1, 2].map(|index| fields(&shards[index]));
    assert_eq!(first, (BTreeSet::from([METADATA, SPLIT_ID]), 1));
    assert_eq!((&second, &third), (&(BTreeSet::from([SPLIT_ID]), 0), &second));
    let (_, plain) = filters::split(&image(MEMORY), 2);
    assert_eq!(fields(&plain[0]), (BTreeSet::from([SPLIT_ID]), 0));
}

#[test]
fn the_end_of_the_inventory_comes_when_all_files_have_been_named() {
    // A pipe may be emptied after that of a file that CRIU has opened later.
    let large = vec![7; 1 << 20];
    let stream = Writer::new().name("pages-1.img").data(b"la").file("inventory.img", b"all");
    let stream = stream.name("pages-1.img").data(b"te").file_eof().file("late.img", b"late");
    let stream = stream.file("pages-2.img", &large).image_eof().finish();
    let shards = shards_of(&stream, 2);
    let mut named = BTreeSet::new();
    let mut all_named = 0;
    for record in records(&shards[0]).expect("markers") {
        if let Body::Filename(name) = &record.body {
            assert_eq!(all_named, 0, "{name:?} comes late");
            named.insert(String::from_utf8(name.clone()).expect("a name"));
        }
        all_named += usize::from(record.skipped.contains(&ALL_NAMED));
    }
    assert_eq!(all_named, 1);
    let files = read_stream(&stream).expect("an image");
    assert!(named.iter().eq(files.keys()), "{named:?}");
    let merged = filters::merge(&shards);
    merged.succeeded();
    assert_eq!(read_stream(&merged.stdout), Ok(files));
}

#[test]
fn files_and_commands_are_written_so_too() {
    let dir = tempdir().expect("a directory");
    let stream = image(MEMORY);
    let split = || Filter::new("shard-split").progress_apart().current_dir(dir.path()).arg("-m");
    split().args(["a", "b", "c"]).run(&stream).succeeded();
    split().args(["-n", "3", "--filter", "cat > $SHARD"]).run(&stream).succeeded();
    for names in [["a", "b", "c"], ["0", "1", "2"]] {
        let shards = names.map(|name| fs::read(dir.path().join(name)).expect("a shard"));
        assert!(records(&shards[0]).expect("markers")[0].skipped.contains(&METADATA));
        assert_eq!(read_shards(&shards), read_stream(&stream));
    }
    let merge = Filter::new("shard-merge").progress_apart().current_dir(dir.path());
    // What the first one reads fits into its pipe.
    let command = "if [ $SHARD = 0 ]; then cat 0 && : > read; \
                   else until [ -e read ]; do sleep 0.01; done; cat $SHARD; fi";
    let merged = merge.args(["-n", "3", "--filter", command]).run(&[]);
    merged.succeeded();
    let first = &records(&merged.stdout).expect("markers")[..];
    let before = first.iter().position(|record| record.skipped.contains(&ALL_NAMED));
    let data = first.iter().position(|record| record.payload.len() > 70_000);
    assert!(before < data, "{before:?}, {data:?}: the metadata does not come first");
}

#[test]
fn one_shard_is_too_few() {
    let finished = Filter::new("shard-split").progress_apart().arg("-m").run(&image(10));
    finished.refused(2, "one shard");
}

/// The end of a shard's first marker, behind which its reader knows what it is.
fn first_marker(shard: &[u8]) -> usize {
    4 + u32::from_le_bytes(shard[..4].try_into().expect("a length")) as usize
}

/// Reads until the file has come, and returns the names that have.
fn read_until_named(mut from: &File, wanted: &str) -> Vec<u8> {
    let mut read = Vec::new();
    let mut buffer = [0; 1 << 16];
    while !read.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
        let length = from.read(&mut buffer).expect("the stream");
        assert!(length > 0, "the stream ended before {wanted}");
        read.extend_from_slice(&buffer[..length]);
    }
    read
}

#[test]
fn the_metadata_goes_first_whatever_the_order_of_the_shards() {
    let stream = image(MEMORY);
    let shards = shards_of(&stream, 3);
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let (inputs, feeds): (Vec<_>, Vec<OwnedFd>) =
            order.iter().map(|_| pipe(Some(1 << 20)).expect("a pipe")).unzip();
        let (collect, stdout) = pipe(None).expect("a pipe");
        let collect = File::from(collect);
        let merge = merge_from(inputs).stdout(stdout).start();
        let mut feeds: Vec<_> = feeds.into_iter().map(File::from).collect();
        // Of the others no more than what they are.
        for (feed, shard) in feeds.iter_mut().zip(order.map(|index| &shards[index])) {
            feed.write_all(&shard[..first_marker(shard)]).expect("merge reads");
        }
        let metadata = order.iter().position(|index| *index == 0).expect("the first shard");
        let shard = &shards[0];
        feeds[metadata].write_all(&shard[first_marker(shard)..]).expect("merge reads");
        let mut merged = read_until_named(&collect, "inventory.img");
        // And it holds up nobody who waits for it: all is there now.
        let rest = collect_from(collect);
        for (feed, shard) in feeds.into_iter().zip(order.map(|index| shards[index].clone())) {
            let rest = if shard == shards[0] {
                Vec::new()
            } else {
                shard[first_marker(&shard)..].to_vec()
            };
            thread::spawn(move || tests::pipeline::write_until_refused(feed.into(), &rest));
        }
        merge.finish().succeeded();
        merged.extend(rest.join().expect("the stream"));
        assert_eq!(read_stream(&merged), read_stream(&stream), "{order:?}");
    }
}

#[test]
fn a_metadata_shard_that_stalls_holds_back_no_memory() {
    // It ends with the dump, and a compressor may keep it until then.
    let stream = image(MEMORY);
    let shards = shards_of(&stream, 3);
    for sent in [first_marker(&shards[0]), shards[0].len() / 2] {
        let (inputs, feeds): (Vec<_>, Vec<OwnedFd>) =
            shards.iter().map(|_| pipe(None).expect("a pipe")).unzip();
        let (collect, stdout) = pipe(None).expect("a pipe");
        let mut collect = File::from(collect);
        let merge = merge_from(inputs).stdout(stdout).start();
        let mut feeds: Vec<_> = feeds.into_iter().map(File::from).collect();
        let mut metadata = feeds.remove(0);
        metadata.write_all(&shards[0][..sent]).expect("merge reads");
        for (feed, shard) in feeds.into_iter().zip(&shards[1..]) {
            let shard = shard.clone();
            thread::spawn(move || tests::pipeline::write_until_refused(feed.into(), &shard));
        }
        let mut merged = vec![0; MEMORY];
        collect.read_exact(&mut merged).expect("the memory comes");
        assert!(merge.is_running());
        let rest = collect_from(collect);
        tests::pipeline::write_until_refused(metadata.into(), &shards[0][sent..]);
        merge.finish().succeeded();
        merged.extend(rest.join().expect("the stream"));
        assert_eq!(read_stream(&merged), read_stream(&stream));
    }
}

#[test]
fn a_set_that_lost_anything_is_refused() {
    let stream = image(300_000);
    let shards = shards_of(&stream, 3);
    let mut random = Random::new(3);
    for case in 0..60 {
        let mut cut = shards.clone();
        let index = random.below(3);
        let length = random.below(cut[index].len());
        cut[index].truncate(length);
        let merged = filters::merge(&cut);
        merged.refused_with_a_place(&format!("case {case}: shard {index} after {length} bytes"));
        assert!(!looks_complete(&merged.stdout), "case {case}: looks complete");
    }
}

#[test]
fn two_shards_in_one_are_refused() {
    let [metadata, memory] = &shards_of(&image(300_000), 2)[..] else { panic!("two shards") };
    let merged = filters::merge(&[[&metadata[..], memory].concat(), Vec::new()]);
    // Which of two causes is seen first, the decreasing numbers or the shard that has nothing, is
    // up to which input is read first.
    merged.refused(1, "joined");
    if !merged.stderr[0].ends_with(": shard 1 of 2 is missing") {
        merged.refused_with_a_place("joined");
    }
    assert!(!looks_complete(&merged.stdout), "looks complete");
}

#[test]
fn shards_of_two_splits_of_an_image_are_refused() {
    let stream = image(MEMORY);
    let identified = |stream: &[u8]| {
        let (finished, shards) = split(stream, 3);
        finished.succeeded();
        filters::merge(&shards).stdout
    };
    // The same image id in both.
    let stream = identified(&stream);
    let [one, other] = [shards_of(&stream, 3), shards_of(&stream, 3)];
    let mixed = filters::merge(&[one[0].clone(), one[1].clone(), other[2].clone()]);
    mixed.refused_with_a_place("two splits");
    assert!(mixed.stderr[0].contains("another split"), "{:?}", mixed.stderr);
    let (_, plain) = filters::split(&stream, 3);
    filters::merge(&[plain[0].clone(), one[1].clone(), one[2].clone()]).refused(1, "two kinds");
}

#[test]
fn a_late_shard_holds_up_and_spoils_nothing() {
    let stream = image(MEMORY);
    let shards = shards_of(&stream, 4);
    for late in 0..4 {
        let (inputs, feeds): (Vec<_>, Vec<OwnedFd>) =
            shards.iter().map(|_| pipe(None).expect("a pipe")).unzip();
        for (index, (feed, shard)) in feeds.into_iter().zip(shards.clone()).enumerate() {
            thread::spawn(move || {
                if index == late {
                    thread::sleep(Duration::from_millis(300));
                }
                tests::pipeline::write_until_refused(feed, &shard);
            });
        }
        let merged = merge_from(inputs).run(&[]);
        merged.succeeded();
        assert_eq!(read_stream(&merged.stdout), read_stream(&stream), "shard {late} is late");
    }
}

#[test]
fn more_large_files_than_may_be_open_are_extracted() {
    let mut random = Random::new(9);
    let large = random.bytes(150_000);
    let writer =
        (0..100).fold(Writer::new(), |it, index| it.file(&format!("pages-{index}.img"), &large));
    let stream = writer.file("inventory.img", b"all").image_eof().finish();
    let merged = filters::merge(&shards_of(&stream, 2));
    merged.succeeded();
    let dir = tempdir().expect("a directory");
    let extract = Filter::after("ulimit -n 30", "image-extract").progress_apart();
    extract.arg("-D").arg(dir.path()).run(&merged.stdout).succeeded();
    assert!(filters::files_in(dir.path()) == read_stream(&stream).expect("an image"));
}
