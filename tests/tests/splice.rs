//! Whether this kernel's splice from pipe to pipe keeps every byte. Stable kernels before
//! 4.14.121, and Ubuntu's 4.15.0 before 1037, do not: pages that were spliced could be taken for
//! another's. Run it on such a machine before you trust the filters with an image:
//!
//!     cargo test -p tests --test splice
//!
//! Not of the filters: it calls the kernel as they do, with all that makes pages change hands.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{self, SpliceFFlags, tee, vmsplice};
use tests::criu::pipe;
use tests::random::Random;

/// In each of the rounds, of which there are as many as fit into the time.
const BYTES: usize = 4 << 20;
const TIME: Duration = Duration::from_secs(3);

/// How the bytes come into the first pipe.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Copied, in pieces that fill pages and do not.
    Write,
    /// By reference to memory, which is not changed before it was read.
    Vmsplice,
    /// By reference to the page cache.
    File,
}

#[test]
fn splice() {
    thread::scope(|scope| {
        for source in [Source::Write, Source::Vmsplice, Source::File] {
            scope.spawn(move || {
                let until = Instant::now() + TIME;
                let mut round = 0;
                while Instant::now() < until {
                    hammer(source, round);
                    round += 1;
                }
                println!("splice: {source:?}: {round} rounds of {BYTES} bytes");
            });
        }
    });
}

/// Sends random bytes through a chain of three pipes of different sizes, in pieces of random
/// lengths, and compares what comes out; what is teed on the way too.
fn hammer(source: Source, round: u64) {
    let seed = round * 3 + source as u64;
    let mut random = Random::new(seed);
    let bytes = random.bytes(BYTES);
    let mut sizes = || Some(1 << (12 + random.below(9)));
    let pipes: Vec<(OwnedFd, OwnedFd)> = (0..3).map(|_| pipe(sizes()).expect("a pipe")).collect();
    let (copy_out, copy_in) = pipe(Some(1 << 20)).expect("a pipe");
    let [(first_out, first_in), (second_out, second_in), (third_out, third_in)] =
        <[_; 3]>::try_from(pipes).expect("three");
    thread::scope(|scope| {
        let bytes = &bytes;
        scope.spawn(move || feed(source, &bytes[..], File::from(first_in), Random::new(seed + 1)));
        scope.spawn(move || pass_on(first_out, second_in, Some(copy_in), Random::new(seed + 2)));
        scope.spawn(move || pass_on(second_out, third_in, None, Random::new(seed + 3)));
        let copied = scope.spawn(move || drain(copy_out));
        let arrived = drain(third_out);
        let copied = copied.join().expect("the copy");
        assert!(
            arrived == *bytes,
            "{source:?}, seed {seed}: {}",
            first_difference(&arrived, bytes)
        );
        assert!(
            copied == *bytes,
            "{source:?}, seed {seed}, tee: {}",
            first_difference(&copied, bytes)
        );
    });
}

fn feed(source: Source, bytes: &[u8], mut to: File, mut random: Random) {
    let mut left = bytes;
    let mut file = tempfile::tempfile().expect("a file");
    if let Source::File = source {
        file.write_all(bytes).expect("room on the disk");
        std::io::Seek::rewind(&mut file).expect("a file");
    }
    while !left.is_empty() {
        let length = (random.magnitude_below(1 << 18) + 1).min(left.len());
        let moved = match source {
            Source::Write => to.write(&left[..length]).expect("a pipe"),
            Source::Vmsplice => {
                let slices = [IoSlice::new(&left[..length])];
                vmsplice(&to, &slices, SpliceFFlags::empty()).expect("a pipe")
            }
            Source::File => {
                fcntl::splice(&file, None, &to, None, length, SpliceFFlags::SPLICE_F_MOVE)
                    .expect("a pipe")
            }
        };
        left = &left[moved..];
    }
}

/// Moves all, in pieces; what is moved is first duplicated into `copy`.
fn pass_on(from: OwnedFd, to: OwnedFd, copy: Option<OwnedFd>, mut random: Random) {
    loop {
        let mut length = random.magnitude_below(1 << 20) + 1;
        if let Some(copy) = &copy {
            length = tee(&from, copy, length, SpliceFFlags::empty()).expect("pipes");
            if length == 0 {
                return;
            }
        }
        let mut left = length;
        while left > 0 {
            match fcntl::splice(&from, None, &to, None, left, SpliceFFlags::SPLICE_F_MOVE)
                .expect("pipes")
            {
                0 => return,
                // What was duplicated must be moved, all of it and no more.
                moved if copy.is_some() => left -= moved,
                _ => break,
            }
        }
    }
}

fn drain(from: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BYTES);
    File::from(from).read_to_end(&mut bytes).expect("a pipe");
    bytes
}

fn first_difference(arrived: &[u8], sent: &[u8]) -> String {
    let byte = arrived.iter().zip(sent).position(|(a, b)| a != b);
    format!("{} of {} bytes, first difference at {byte:?}", arrived.len(), sent.len())
}
