//! The merge of a set of shards. The bytes say how an image is dealt out, whether the shards tell
//! their identity or hold the metadata in one of them, and what then happens to them: pieces are lost, repeated, moved and changed.
//! What is merged is the image that the tests' own reader finds; what is refused has no end.
#![no_main]

use cli::{Counters, Place, Program, ShardEnd, StreamOutput};
use fuzz::bounded;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use pipe_io::Endpoint;
use pipe_io::pipe::Pipe;
use shard_merge::Merge;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tests::malformed::{metadata_first, mutate};
use tests::stream::{Body, Writer, deal, looks_complete, read_shards, read_stream};

/// A shard is at most so long, in bytes: what an empty pipe takes.
const SHARD_MAX: usize = 64 << 10;
const SHARDS_MAX: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let mut choices = Choices(bytes);
    let shards = match choices.below(4) {
        0 => raw(&mut choices),
        _ => mutated(&mut choices),
    };
    if shards.len() > SHARDS_MAX || shards.iter().any(|shard| shard.len() > SHARD_MAX) {
        return;
    }
    let as_files = choices.below(256);
    let sent = shards.concat();
    let expected = read_shards(&shards);
    let mut output = memory();
    let merged = {
        let ends = (0..).zip(&shards).map(|(index, shard)| end(index, shard, as_files)).collect();
        let output = endpoint(output.try_clone().expect("a descriptor"));
        // What is kept of each file of a set with a metadata shard is longer than its shortest name.
        bounded(&sent, 32, || merge(ends, output, shards.len()))
    };
    output.rewind().expect("a file in memory");
    let mut stream = Vec::new();
    output.read_to_end(&mut stream).expect("a file in memory");
    match (merged, expected) {
        (Ok(()), Ok(files)) => assert_eq!(read_stream(&stream), Ok(files)),
        // It knows nothing of groups, which protobuf has given up and still allows, and takes no
        // number that is too large, of which protobuf drops the upper bits.
        (Ok(()), Err(cause)) => {
            assert!(cause.contains("wire type") || cause.contains("too large"), "{cause}");
        }
        (Err(_), _) => assert!(!looks_complete(&stream), "it is refused, and complete"),
    }
});

fn merge(ends: Vec<ShardEnd>, output: Endpoint, count: usize) -> Result<(), shard_merge::Error> {
    let output = StreamOutput::new(output, Arc::new(Counters::new(1)));
    let counters = Arc::new(Counters::with_blocked(count));
    let mut merge = Merge::new(Program::new("shard-merge", false), ends, output, &counters);
    merge.run()?;
    merge.finish()
}

/// What the bytes say, number by number; 0 when they have ended.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn below(&mut self, end: usize) -> usize {
        let mut number = 0;
        let mut most = 1;
        while most < end {
            number = number << 8 | self.byte();
            most <<= 8;
        }
        number % end
    }

    fn byte(&mut self) -> usize {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*byte)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// Shards of which every byte is the fuzzer's.
fn raw(choices: &mut Choices<'_>) -> Vec<Vec<u8>> {
    let count = 1 + choices.below(SHARDS_MAX);
    (0..count)
        .map(|_| {
            let length = choices.below(1 << 16);
            choices.take(length)
        })
        .collect()
}

/// An image that is dealt out, and then is changed a few times.
fn mutated(choices: &mut Choices<'_>) -> Vec<Vec<u8>> {
    let count = 1 + choices.below(4);
    let stream = image(choices);
    let mut shards = match choices.below(3) {
        0 => deal(&stream, count, |_| choices.below(count)),
        1 => metadata_first(1 + count, |end| choices.below(end)),
        _ => identified(choices, count),
    };
    for _ in 0..choices.below(4) {
        mutate(&mut shards, |end| choices.below(end));
    }
    shards
}

fn image(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut stream = Writer::new();
    for _ in 0..choices.below(4) {
        let name = ["pages-1.img", "core-7.img", "fs.img"][choices.below(3)];
        stream = stream.name(name);
        for _ in 0..choices.below(4) {
            let length = choices.below(5000);
            stream = stream.data(&vec![b'x'; length]);
        }
        stream = stream.file_eof();
    }
    stream.file("inventory.img", b"everything").image_eof().finish()
}

/// Shards that tell what they are, or lie about it: the first marker of each stands in it.
fn identified(choices: &mut Choices<'_>, count: usize) -> Vec<Vec<u8>> {
    let name = Body::Filename(b"pages-1.img".to_vec());
    (0..count as u64)
        .map(|index| {
            let image = [1 + (choices.below(16) == 1) as u8; 16];
            let of = count as u64 + (choices.below(16) == 1) as u64;
            let shard = Writer::new().seq(index * 2);
            let shard = shard.identified_marker(&name, image, index, of);
            let length = choices.below(300);
            let shard = shard.data(&vec![b'y'; length]);
            match index + 1 == count as u64 {
                true => shard.file_eof().file("inventory.img", b"all").image_eof().finish(),
                false => shard.finish(),
            }
        })
        .collect()
}

/// A shard as a file, or as a pipe that nobody writes any more.
fn end(index: usize, shard: &[u8], as_files: usize) -> ShardEnd {
    let endpoint = match as_files >> index & 1 {
        1 => {
            let mut file = memory();
            file.write_all(shard).expect("a file in memory");
            file.rewind().expect("a file in memory");
            endpoint(file)
        }
        _ => {
            let Pipe { read, write } = Pipe::new().expect("a pipe");
            File::from(write).write_all(shard).expect("an empty pipe");
            endpoint(read)
        }
    };
    ShardEnd { place: Place::Shard { index, fd: 10 + index as i32 }, endpoint, file: None }
}

fn endpoint(fd: impl Into<OwnedFd>) -> Endpoint {
    Endpoint::new(fd.into()).expect("a pipe or a file")
}

fn memory() -> File {
    memfd_create("merge", MFdFlags::MFD_CLOEXEC).expect("a file in memory").into()
}
