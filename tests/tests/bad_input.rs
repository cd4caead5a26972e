//! An image is whole or it is refused: every malformed stream ends in exit
//! status 1, one line that says where and why, and nothing that looks like a
//! complete image.

use tempfile::tempdir;
use tests::filters::{self, files_in};
use tests::malformed::{shard_sets, small_stream, streams};
use tests::pipeline::{Filter, Finished};
use tests::stream::{Body, LONGEST_MARKER, Writer, deal, looks_complete, read_stream};

#[test]
fn split_refuses_malformed_streams() {
    for (case, stream) in streams() {
        split_refuses(&stream, &case);
    }
}

#[test]
fn split_refuses_a_stream_cut_at_any_byte() {
    each_cut(split_refuses);
}

fn split_refuses(stream: &[u8], case: &str) {
    let (finished, shards) = filters::split(stream, 2);
    finished.refused_with_a_place(case);
    assert!(!shards.iter().any(|shard| looks_complete(shard)), "{case}: the shards look complete");
}

#[test]
fn merge_refuses_malformed_streams() {
    for (case, stream) in streams() {
        merge_refuses(&[stream], &case);
    }
}

#[test]
fn merge_refuses_malformed_sets_of_shards() {
    for (case, shards) in shard_sets() {
        merge_refuses(&shards, &case);
    }
}

#[test]
fn merge_refuses_a_shard_cut_at_any_byte() {
    each_cut(|stream, case| merge_refuses(&[stream.to_vec()], case));
    let shards = deal(&small_stream(), 2, |index| index % 2);
    for victim in 0..2 {
        for length in 0..shards[victim].len() {
            let mut cut = shards.clone();
            cut[victim].truncate(length);
            merge_refuses(&cut, &format!("shard {victim} cut after {length} bytes"));
        }
    }
}

fn merge_refuses(shards: &[Vec<u8>], case: &str) {
    let finished = filters::merge(shards);
    finished.refused_with_a_place(case);
    assert!(!looks_complete(&finished.stdout), "{case}: the stream looks complete");
}

#[test]
fn a_message_tells_the_shard_and_its_descriptor() {
    let mut shards = deal(&small_stream(), 3, |index| index % 3);
    let length = shards[1].len();
    shards[1].truncate(length - 1);
    let finished = filters::merge(&shards);
    finished.refused_with_a_place("shard 1 is cut");
    let message = &finished.stderr[0];
    let expected = format!("shard-merge: shard 1 (fd 11): truncated after {} bytes", length - 1);
    assert_eq!(*message, expected);
}

/// By what it begins with: no compressor need be here.
#[test]
fn an_image_that_is_still_compressed_or_encrypted_is_recognized() {
    let zstd = [b"\x28\xb5\x2f\xfd".as_slice(), &[7; 5000]].concat();
    let age = b"age-encryption.org/v1\n-> X25519 abc".to_vec();
    let cases = [
        (zstd, "this is zstd: decompress it first (zstd -dc)"),
        (age, "this is age: decrypt it first (age -d)"),
    ];
    for (bytes, expected) in cases {
        let dir = tempdir().expect("a directory");
        let merged = filters::merge(&[small_stream(), bytes.clone()]);
        assert_eq!(merged.stderr, [format!("shard-merge: shard 1 (fd 11): {expected}")]);
        let serve = filters::serve(dir.path()).run(&bytes);
        let extract = filters::extract(dir.path()).run(&bytes);
        let list = Filter::new("image-extract").arg("--list").run(&bytes);
        for finished in [filters::split(&bytes, 2).0, serve, extract, list, merged] {
            finished.refused_with_a_place(expected);
            assert!(finished.stderr[0].ends_with(expected), "{:?}", finished.stderr);
        }
    }
}

#[test]
fn serve_refuses_malformed_streams() {
    for (case, stream) in streams() {
        serve_refuses(&stream, &case);
    }
}

#[test]
fn serve_refuses_a_stream_cut_at_any_byte() {
    each_cut(serve_refuses);
}

fn serve_refuses(stream: &[u8], case: &str) {
    let dir = tempdir().expect("a directory");
    let finished = filters::start_serve(filters::serve(dir.path()), stream).finish();
    finished.refused_with_a_place(case);
    let invited = finished.progress.iter().any(|line| line == "socket-init");
    assert!(!invited, "{case}: CRIU was told to start");
    assert!(no_files_in(&dir), "{case}: left something behind");
}

#[test]
fn extract_refuses_malformed_streams() {
    for (case, stream) in streams() {
        extract_refuses(&stream, &case);
    }
}

#[test]
fn extract_refuses_a_stream_cut_at_any_byte() {
    each_cut(extract_refuses);
}

fn extract_refuses(stream: &[u8], case: &str) {
    let parent = tempdir().expect("a directory");
    let dir = parent.path().join("images");
    std::fs::create_dir(&dir).expect("a directory");
    let finished = filters::extract(&dir).run(stream);
    finished.refused_with_a_place(case);
    let inventory = dir.join("inventory.img");
    assert!(!inventory.exists(), "{case}: the directory looks complete");
    assert!(!parent.path().join("out").exists(), "{case}: a file outside the directory");
}

#[test]
fn verify_and_list_refuse_malformed_streams() {
    for (case, stream) in streams() {
        verify_and_list_refuse(&stream, &case);
    }
}

#[test]
fn verify_and_list_refuse_a_stream_cut_at_any_byte() {
    each_cut(verify_and_list_refuse);
}

fn verify_and_list_refuse(stream: &[u8], case: &str) {
    for mode in ["--verify", "--list"] {
        let finished: Finished = Filter::new("image-extract").arg(mode).run(stream);
        finished.refused_with_a_place(&format!("{mode}, {case}"));
    }
}

/// The other side of "at most": these are at the limit, and fine.
#[test]
fn the_longest_marker_and_the_longest_name_are_accepted() {
    let long_name = "n".repeat(255);
    let name = Body::Filename(long_name.clone().into_bytes());
    let padded = Writer::new().padded_marker(&name, LONGEST_MARKER).data(b"x").file_eof();
    let stream = padded.file("inventory.img", b"all").image_eof().finish();
    let dir = tempdir().expect("a directory");
    filters::extract(dir.path()).run(&stream).succeeded();
    assert_eq!(files_in(dir.path())[&long_name], b"x");
    let (split, shards) = filters::split(&stream, 2);
    split.succeeded();
    let merged = filters::merge(&shards);
    merged.succeeded();
    assert_eq!(read_stream(&merged.stdout).expect("valid")[&long_name], b"x");
}

#[test]
fn a_shard_that_received_nothing_is_an_empty_file() {
    let stream = small_stream();
    let finished = filters::merge(&[Vec::new(), stream.clone(), Vec::new()]);
    finished.succeeded();
    assert_eq!(read_stream(&finished.stdout), read_stream(&stream));
}

fn each_cut(refuses: impl Fn(&[u8], &str)) {
    let stream = small_stream();
    for length in 0..stream.len() {
        refuses(&stream[..length], &format!("cut after {length} of {} bytes", stream.len()));
    }
}

fn no_files_in(dir: &tempfile::TempDir) -> bool {
    std::fs::read_dir(dir.path()).expect("the directory").next().is_none()
}
