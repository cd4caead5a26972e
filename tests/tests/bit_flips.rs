//! One bit of a marker, flipped: the stream is refused, or it is the same image all the same, or
//! a file has another name. The last is the one damage to a marker that the stream cannot show,
//! as it cannot show damage to the files' bytes; the compressor's checksum shows both.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use tempfile::tempdir;
use tests::criu::RestoreClient;
use tests::filters::{self, files_in};
use tests::malformed::small_stream;
use tests::pipeline::Filter;
use tests::random::Random;
use tests::stream::{Body, Files, Writer, deal, looks_complete, read_shards, read_stream, records};

/// The bytes of a stream or a shard that belong to markers.
fn marker_bytes(stream: &[u8]) -> Vec<usize> {
    let mut bytes = Vec::new();
    let mut position = 0;
    for record in records(stream).expect("well-formed") {
        let length = stream[position..position + 4].try_into().expect("four bytes");
        let end = position + 4 + u32::from_le_bytes(length) as usize;
        bytes.extend(position..end);
        position = end + record.payload.len();
    }
    bytes
}

/// Every stream that differs in one bit of a marker.
fn flips(stream: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> {
    marker_bytes(stream).into_iter().flat_map(move |byte| {
        (0..8).map(move |bit| {
            let mut flipped = stream.to_vec();
            flipped[byte] ^= 1 << bit;
            (format!("bit {bit} of byte {byte}"), flipped)
        })
    })
}

/// What a flipped stream is, by the reference reader.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Refused,
    Same,
    /// One file has another name, and its own content.
    Renamed(Files),
}

fn fate(flipped: Result<Files, String>, whole: &Files, case: &str) -> Fate {
    let Ok(files) = flipped else { return Fate::Refused };
    if files == *whole {
        return Fate::Same;
    }
    let contents = |files: &Files| files.values().cloned().collect::<BTreeSet<_>>();
    let strange = files.keys().filter(|name| !whole.contains_key(*name)).count();
    assert_eq!((files.len(), strange), (whole.len(), 1), "{case}: {files:?}");
    assert_eq!(contents(&files), contents(whole), "{case}: other contents");
    Fate::Renamed(files)
}

/// Nothing that a filter accepts is anything but what the reference reader reads; it may refuse
/// more.
#[track_caller]
fn check(case: &str, whole: &Files, fate: &Fate, accepted: Option<Files>) {
    match (accepted, fate) {
        (None, _) => {}
        (Some(files), Fate::Same) => assert_eq!(files, *whole, "{case}"),
        (Some(files), Fate::Renamed(renamed)) => assert_eq!(files, *renamed, "{case}"),
        (Some(_), Fate::Refused) => panic!("{case}: accepted"),
    }
}

#[test]
fn most_flips_are_refused_and_none_is_harmful_but_another_name() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    let fates: Vec<_> =
        flips(&stream).map(|(case, flipped)| fate(read_stream(&flipped), &whole, &case)).collect();
    let count = |is_it: fn(&Fate) -> bool| fates.iter().filter(|fate| is_it(fate)).count();
    let same = count(|fate| *fate == Fate::Same);
    let renamed = count(|fate| matches!(fate, Fate::Renamed(_)));
    println!(
        "{} flips: {same} harmless, {renamed} rename a file, the rest are refused",
        fates.len()
    );
    // Names that stand in one marker only: those of two files. Seven bits a letter, less those
    // that make a slash, a NUL or another file's name.
    assert!(renamed <= 7 * ("empty.img".len() + "inventory.img".len()), "{renamed}");
    // A true that is true in another way, and a number with a bit that does not count.
    assert!(same * 10 < fates.len(), "{same}");
}

#[test]
fn split_refuses_or_passes_on_what_is_there() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    for (case, flipped) in flips(&stream) {
        let fate = fate(read_stream(&flipped), &whole, &case);
        let (finished, shards) = filters::split(&flipped, 2);
        let accepted = finished.status.success().then(|| read_shards(&shards).expect("an image"));
        if accepted.is_none() {
            finished.refused_with_a_place(&case);
            assert!(!shards.iter().any(|shard| looks_complete(shard)), "{case}: looks complete");
        }
        check(&case, &whole, &fate, accepted);
    }
}

#[test]
fn merge_refuses_or_passes_on_what_is_there() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    let shards = deal(&stream, 2, |index| index % 2);
    for victim in 0..2 {
        for (case, flipped) in flips(&shards[victim]) {
            let case = format!("shard {victim}, {case}");
            let mut set = shards.clone();
            set[victim] = flipped;
            let fate = fate(read_shards(&set), &whole, &case);
            let finished = filters::merge(&set);
            let accepted =
                finished.status.success().then(|| read_stream(&finished.stdout).expect("an image"));
            if accepted.is_none() {
                finished.refused_with_a_place(&case);
                assert!(!looks_complete(&finished.stdout), "{case}: looks complete");
            }
            check(&case, &whole, &fate, accepted);
        }
    }
}

#[test]
fn extract_and_verify_refuse_or_accept_what_is_there() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    for (case, flipped) in flips(&stream) {
        let fate = fate(read_stream(&flipped), &whole, &case);
        let dir = tempdir().expect("a directory");
        let extracted = filters::extract(dir.path()).run(&flipped);
        let verified = Filter::new("image-extract").arg("--verify").run(&flipped);
        assert_eq!(extracted.status.code(), verified.status.code(), "{case}");
        let accepted = extracted.status.success().then(|| files_in(dir.path()));
        if accepted.is_none() {
            extracted.refused_with_a_place(&case);
            verified.refused_with_a_place(&case);
            assert!(files_in(dir.path()).is_empty(), "{case}: something is left");
        }
        check(&case, &whole, &fate, accepted);
    }
}

#[test]
fn serve_refuses_or_serves_what_is_there() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    for (case, flipped) in flips(&stream) {
        let mut fate = fate(read_stream(&flipped), &whole, &case);
        // The filters may refuse more, all of them the same.
        if !Filter::new("image-extract").arg("--verify").run(&flipped).status.success() {
            fate = Fate::Refused;
        }
        let expected = match &fate {
            Fate::Refused => {
                let dir = tempdir().expect("a directory");
                let served = filters::start_serve(filters::serve(dir.path()), &flipped).finish();
                served.refused_with_a_place(&case);
                assert!(!served.progress.iter().any(|line| line == "socket-init"), "{case}");
                continue;
            }
            Fate::Same => &whole,
            Fate::Renamed(files) => files,
        };
        let dir = tempdir().expect("a directory");
        filters::restore(dir.path(), &flipped, |mut client| {
            check(&case, &whole, &fate, Some(read_all(&mut client, expected, &case)));
        });
    }
}

fn read_all(client: &mut RestoreClient, files: &Files, case: &str) -> Files {
    let read = |name: &String| {
        let content = client.read(name).expect("a reply");
        (name.clone(), content.unwrap_or_else(|| panic!("{case}: {name} is not served")))
    };
    files.keys().map(read).collect()
}

/// The identity that stands in the first marker of a shard.
#[test]
fn a_flip_in_the_identity_of_a_shard_is_refused_or_harmless() {
    let body = Body::Filename(b"inventory.img".to_vec());
    let first = Writer::new().identified_marker(&body, [7; 16], 0, 2).data(b"all").finish();
    let eof = Body::FileEof;
    let second = Writer::new().seq(2).identified_marker(&eof, [7; 16], 1, 2).image_eof().finish();
    let whole = read_shards(&[first.clone(), second.clone()]).expect("well-formed");
    filters::merge(&[first.clone(), second.clone()]).succeeded();
    for (victim, shard) in [first.clone(), second.clone()].into_iter().enumerate() {
        for (case, flipped) in flips(&shard) {
            let case = format!("shard {victim}, {case}");
            let mut set = [first.clone(), second.clone()];
            set[victim] = flipped;
            let fate = fate(read_shards(&set), &whole, &case);
            let finished = filters::merge(&set);
            let accepted =
                finished.status.success().then(|| read_stream(&finished.stdout).expect("an image"));
            check(&case, &whole, &fate, accepted);
        }
    }
}

/// As the man pages say: the stream cannot show it, the compressors' checksums do.
#[test]
fn a_flip_in_a_file_s_bytes_is_refused_by_the_compressor_s_checksum() {
    let pages = Random::new(5).bytes(300_000);
    let files = Writer::new().file("pages-1.img", &pages).file("inventory.img", b"everything");
    let stream = files.image_eof().finish();
    let dir = tempdir().expect("a directory");
    fs::write(dir.path().join("image"), &stream).expect("a file");
    for (tool, pack) in [("zstd", "zstd -q --check"), ("lz4", "lz4 -q")] {
        if Command::new(tool).arg("--version").output().is_err() {
            println!("skipped: a flip in a file's bytes: no {tool}");
            continue;
        }
        let pack = format!("{pack} < image > packed");
        let packing = Command::new("sh").current_dir(&dir).args(["-c", &pack]).status();
        assert!(packing.expect("a shell").success(), "{tool}");
        let merge = || {
            let unpack = format!("{tool} -q -dc packed");
            let merge = Filter::new("shard-merge").progress_apart().current_dir(dir.path());
            merge.args(["-n", "1", "--filter", &unpack]).run(&[])
        };
        merge().succeeded();
        let packed = dir.path().join("packed");
        let mut bytes = fs::read(&packed).expect("a file");
        // Random bytes are stored as they are.
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&packed, bytes).expect("a file");
        let merged = merge();
        assert_eq!(merged.status.code(), Some(1), "{tool}: said {:?}", merged.stderr);
        assert!(!looks_complete(&merged.stdout), "{tool}: looks complete");
    }
}
