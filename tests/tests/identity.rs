//! Streams and shards say which image they belong to, in fields that a peer
//! skips; and shards of two images are not mixed up.

use std::collections::BTreeSet;

use tempfile::tempdir;
use tests::filters;
use tests::stream::{Body, Writer, looks_complete, read_shards, records};

const IMAGE_ID: u64 = 100;
const SHARD_INDEX: u64 = 101;
const SHARD_COUNT: u64 = 102;
const SPLIT_ID: u64 = 106;

/// The fields that a peer skips in the first marker, and in all others.
fn skipped(stream: &[u8]) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let records = records(stream).expect("a well-formed stream");
    let (first, others) = records.split_first().expect("a marker");
    let others = others.iter().flat_map(|record| record.skipped.clone());
    (first.skipped.clone(), others.collect())
}

#[test]
fn the_first_marker_of_a_stream_and_of_every_shard_says_whose_it_is() {
    let dir = tempdir().expect("a directory");
    let captured = filters::dump(dir.path(), |mut client| {
        for number in 0..40 {
            let name = format!("core-{number}.img");
            client.send(&name, &[7; 10_000]).expect("capture reads");
        }
        client.send("inventory.img", b"all").expect("capture reads");
    });
    captured.succeeded();
    let in_streams = (BTreeSet::from([IMAGE_ID]), BTreeSet::new());
    assert_eq!(skipped(&captured.stdout), in_streams, "criu-sock-capture");

    let (split, shards) = filters::split(&captured.stdout, 3);
    split.succeeded();
    let in_shards = BTreeSet::from([IMAGE_ID, SHARD_INDEX, SHARD_COUNT, SPLIT_ID]);
    for (index, shard) in shards.iter().enumerate() {
        if shard.is_empty() {
            continue;
        }
        let (mut first, others) = skipped(shard);
        if index == 0 {
            // proto3 need not write a 0.
            first.insert(SHARD_INDEX);
        }
        assert_eq!(first, in_shards, "shard-split, shard {index}");
        assert!(others.is_empty(), "shard-split, shard {index}: {others:?}");
    }

    let merged = filters::merge(&shards);
    merged.succeeded();
    assert_eq!(skipped(&merged.stdout), in_streams, "shard-merge");
}

/// Two shards that fit each other in everything but, perhaps, their identity.
fn two_shards(ids: [[u8; 16]; 2]) -> [Vec<u8>; 2] {
    let name = Body::Filename(b"inventory.img".to_vec());
    let first = Writer::new().identified_marker(&name, ids[0], 0, 2);
    let first = first.seq(2).file_eof().image_eof().finish();
    let second = Writer::new().seq(1);
    let second = second.identified_marker(&Body::FileData(3), ids[1], 1, 2);
    [first, second.raw(b"all").finish()]
}

#[test]
fn shards_of_two_images_are_refused() {
    let same = two_shards([[1; 16]; 2]);
    read_shards(&same).expect("valid shards");
    filters::merge(&same).succeeded();

    let mixed = filters::merge(&two_shards([[1; 16], [2; 16]]));
    mixed.refused_with_a_place("shards of two images");
    assert!(!looks_complete(&mixed.stdout), "the stream looks complete");
}
