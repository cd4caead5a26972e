//! Images move freely between criu-image-streamer 1.0 and these filters, both
//! ways.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::{TempDir, tempdir, tempfile};
use tests::criu::DumpClient;
use tests::filters::{self, assert_same_files, files_in};
use tests::pipeline::Filter;
use tests::stream::{Files, read_shards, read_stream};

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/peer").join(name)
}

fn open(name: &str) -> File {
    File::open(peer(name)).expect("the peer's data")
}

fn one() -> Vec<u8> {
    std::fs::read(peer("one.img")).expect("the peer's data")
}

/// `SHA256SUMS` as sum and name.
fn sums() -> Vec<(String, String)> {
    let sums = std::fs::read_to_string(peer("SHA256SUMS")).expect("the peer's data");
    let pair = |line: &str| line.split_once("  ").map(|(sum, name)| (sum.into(), name.into()));
    sums.lines().map(|line| pair(line).expect("a sum and a name")).collect()
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn assert_has_the_listed_sums(files: &Files) {
    let mut found: Vec<_> =
        files.iter().map(|(name, content)| (sum(content), name.clone())).collect();
    let mut expected = sums();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

#[test]
fn the_peer_s_image_in_one_shard_extracts_to_its_checksums() {
    let dir = directory();
    filters::extract(dir.path()).stdin(open("one.img")).start().finish().succeeded();
    assert_has_the_listed_sums(&files_in(dir.path()));
}

#[test]
fn the_peer_s_image_in_three_shards_extracts_to_its_checksums_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let shards = order.map(|index| open(&format!("three-{index}.img")).into());
        let merged = filters::merge_from(shards).run(&[]);
        merged.succeeded();
        let dir = directory();
        filters::extract(dir.path()).run(&merged.stdout).succeeded();
        assert_has_the_listed_sums(&files_in(dir.path()));
    }
}

#[test]
fn a_peer_reads_what_capture_writes() {
    let files = read_stream(&one()).expect("the peer's image");
    let dir = directory();
    let captured = filters::dump(dir.path(), |mut client: DumpClient| {
        let (inventory, others): (Vec<_>, Vec<_>) =
            files.iter().partition(|(name, _)| *name == "inventory.img");
        for (name, content) in others.into_iter().chain(inventory) {
            client.send(name, content).expect("capture takes the file");
        }
    });
    captured.succeeded();
    assert_same_files(&read_stream(&captured.stdout).expect("a valid stream"), &files, "capture");
}

#[test]
fn a_peer_reads_what_split_and_merge_write() {
    let files = read_stream(&one()).expect("the peer's image");
    for count in [1, 3] {
        let (split, shards) = filters::split(&one(), count);
        split.succeeded();
        let read = read_shards(&shards).expect("valid shards");
        assert_same_files(&read, &files, &format!("{count} shards"));
        let merged = filters::merge(&shards);
        merged.succeeded();
        let read = read_stream(&merged.stdout).expect("a valid stream");
        assert_same_files(&read, &files, &format!("merged from {count} shards"));
    }
}

#[test]
fn list_names_every_file_once() {
    let listed = Filter::new("image-extract").arg("--list").run(&one());
    listed.succeeded();
    let text = String::from_utf8(listed.stdout).expect("UTF-8");
    for (_, name) in sums() {
        let is_named = |line: &&str| line.split_whitespace().any(|word| word == name);
        assert_eq!(text.lines().filter(is_named).count(), 1, "{name} in\n{text}");
    }
    assert_eq!(text.lines().count(), sums().len(), "{text}");
}

#[test]
fn list_json_is_json_that_names_every_file() {
    let listed = Filter::new("image-extract").args(["--list", "--json"]).run(&one());
    listed.succeeded();
    let json: Result<Vec<serde_json::Value>, _> =
        serde_json::Deserializer::from_slice(&listed.stdout).into_iter().collect();
    let text = serde_json::to_string(&json.expect("JSON")).expect("JSON");
    for (_, name) in sums() {
        assert!(text.contains(&format!("{name:?}")), "{name} in {text}");
    }
}

#[test]
fn verify_accepts_the_peer_s_image_and_writes_nothing() {
    let dir = directory();
    let verify = Filter::new("image-extract").arg("--verify");
    verify.run(&one()).succeeded();
    assert!(files_in(dir.path()).is_empty());
}

#[test]
fn named_files_are_extracted_alone() {
    let dir = directory();
    let extract = filters::extract(dir.path()).args(["core-7.img", "inventory.img"]);
    extract.run(&one()).succeeded();
    let files = read_stream(&one()).expect("the peer's image");
    let wanted = ["core-7.img", "inventory.img"];
    let expected = files.into_iter().filter(|(name, _)| wanted.contains(&name.as_str())).collect();
    assert_same_files(&files_in(dir.path()), &expected, "extracted by name");
}

#[test]
fn a_named_file_that_the_image_lacks_is_an_error() {
    let dir = directory();
    let extract = filters::extract(dir.path()).args(["core-7.img", "core-7777.img"]);
    let finished = extract.run(&one());
    finished.refused(1, "a missing file");
    assert!(finished.stderr[0].contains("core-7777.img"), "{:?}", finished.stderr);
}

#[test]
fn an_external_file_is_extracted_to_its_descriptor_and_not_to_the_directory() {
    let dir = directory();
    let mut tar = tempfile().expect("a file");
    let output = tar.try_clone().expect("a descriptor");
    filters::extract(dir.path()).args(["-e", "fs.tar:20"]).fd(20, output).run(&one()).succeeded();
    let mut content = Vec::new();
    tar.seek(SeekFrom::Start(0)).expect("a file");
    tar.read_to_end(&mut content).expect("a file");
    let mut files = files_in(dir.path());
    assert!(!files.contains_key("fs.tar"), "fs.tar is in the directory too");
    files.insert("fs.tar".into(), content);
    assert_has_the_listed_sums(&files);
}
