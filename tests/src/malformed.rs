//! Streams and shard sets that every filter must refuse (docs/design.md section 3,
//! and the promise that an image is whole or refused).

use crate::stream::{Body, LONGEST_MARKER, Writer, deal};

/// A small image, complete and well-formed, with interleaved files.
pub fn small_stream() -> Vec<u8> {
    before_the_end().image_eof().finish()
}

/// The same without its `image_eof`.
fn before_the_end() -> Writer {
    Writer::new()
        .name("pages-1.img")
        .data(b"some pages")
        .name("pagemap-7.img")
        .data(b"a map")
        .name("pages-1.img")
        .data(b" and more")
        .file_eof()
        .name("pagemap-7.img")
        .file_eof()
        .file("empty.img", b"")
        .file("inventory.img", b"everything")
}

/// Malformed streams, each with the name of what is wrong with it. All are
/// complete but for that.
pub fn streams() -> Vec<(String, Vec<u8>)> {
    let mut cases = markers();
    cases.extend(sequences());
    cases.extend(names());
    cases.push(("nothing at all".into(), Vec::new()));
    cases.push(("no image_eof".into(), before_the_end().finish()));
    cases
        .into_iter()
        .chain([("random bytes".into(), crate::random::Random::new(3).bytes(4096))])
        .collect()
}

/// Oversized, undecodable and misplaced markers.
fn markers() -> Vec<(String, Vec<u8>)> {
    let middle = || Writer::new().file("core-1.img", b"core");
    let ended = |writer: Writer| writer.file("inventory.img", b"all").image_eof().finish();
    let oversized = |length| {
        let name = Body::Filename(b"core-2.img".to_vec());
        ended(middle().padded_marker(&name, length).data(b"x").file_eof())
    };
    [
        ("a marker one byte too long", oversized(LONGEST_MARKER + 1)),
        ("a marker of 4 GiB", ended(middle().raw(&[0xff; 4]))),
        ("an empty marker", ended(middle().protobuf(&[]))),
        ("a marker without a body", ended(middle().protobuf(&[1 << 3, 3]))),
        ("a marker that isn't protobuf", ended(middle().protobuf(&[0xff; 16]))),
        ("a marker whose varint never ends", ended(middle().protobuf(&[1 << 3, 0x80]))),
        ("a marker with a cut name", ended(middle().protobuf(&[1 << 3, 3, 2 << 3 | 2, 9, b'a']))),
        ("a marker with a wrong wire type", ended(middle().protobuf(&[1 << 3, 3, 3 << 3 | 2, 0]))),
        ("file_data before any name", ended(Writer::new().data(b"whose?"))),
        ("file_data after file_eof", ended(middle().data(b"whose?"))),
        ("file_eof before any name", ended(Writer::new().file_eof())),
        ("a second file_eof", ended(middle().file_eof())),
        ("image_eof in a file", {
            let open = middle().file("inventory.img", b"all").name("pages-1.img").data(b"x");
            open.image_eof().finish()
        }),
        ("image_eof while an older file is open", {
            let open = middle().name("pages-1.img").data(b"x").file("inventory.img", b"all");
            open.image_eof().finish()
        }),
        ("a marker after image_eof", {
            let ended = before_the_end().image_eof();
            ended.file("late.img", b"late").finish()
        }),
        ("a second image_eof", before_the_end().image_eof().image_eof().finish()),
        ("a byte after image_eof", before_the_end().image_eof().raw(&[0]).finish()),
        ("zeros after image_eof", before_the_end().image_eof().raw(&[0; 8192]).finish()),
    ]
    .map(|(case, stream)| (case.into(), stream))
    .into()
}

/// Gaps and repeats in the sequence.
fn sequences() -> Vec<(String, Vec<u8>)> {
    let after_core_1 = |seq| {
        let numbered = Writer::new().file("core-1.img", b"core").seq(seq);
        numbered.file("inventory.img", b"all").image_eof().finish()
    };
    [
        ("a gap in the sequence", after_core_1(4)),
        ("a large gap in the sequence", after_core_1(u64::MAX - 8)),
        ("a repeat in the sequence", after_core_1(2)),
        ("a sequence that starts again", after_core_1(0)),
        ("a sequence that starts at 1", {
            Writer::new().seq(1).file("inventory.img", b"all").image_eof().finish()
        }),
    ]
    .map(|(case, stream)| (case.into(), stream))
    .into()
}

/// Names that aren't one path component.
fn names() -> Vec<(String, Vec<u8>)> {
    bad_names()
        .into_iter()
        .map(|name| {
            let named = Writer::new().name(&name).data(b"out!").file_eof();
            let stream = named.file("inventory.img", b"all").image_eof().finish();
            (format!("the name {name:?}"), stream)
        })
        .collect()
}

/// What is no file name.
pub fn bad_names() -> Vec<String> {
    let mut names = ["", ".", "..", "../out", "/tmp/out", "a/b", "a/", "nul\0"].map(String::from);
    names.sort();
    names.into_iter().chain(["n".repeat(256)]).collect()
}

/// Malformed sets of three shards.
pub fn shard_sets() -> Vec<(String, Vec<Vec<u8>>)> {
    let stream = small_stream();
    let dealt = || deal(&stream, 3, |index| index % 3);
    let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut shards = dealt();
        change(&mut shards);
        shards
    };
    let last = crate::stream::records(&stream).expect("well-formed").len() as u64 - 1;
    let late = Writer::new().seq(last + 1).file("late.img", b"late").finish();
    let falling = Writer::new().seq(2).name("b").seq(1).name("a").finish();
    [
        ("a shard is missing", changed(&|shards| shards[1].clear())),
        ("a shard is there twice", changed(&|shards| shards[1] = shards[0].clone())),
        ("no shard has anything", vec![Vec::new(); 3]),
        ("a shard ends in rubbish", changed(&|shards| shards[2].extend(b"rubbish"))),
        (
            "a shard goes on after image_eof",
            changed(&|shards| {
                shards[last as usize % 3].extend(&late);
            }),
        ),
        (
            "another shard goes on after image_eof",
            changed(&|shards| {
                shards[(last as usize + 1) % 3].extend(&late);
            }),
        ),
        (
            "a shard falls in its sequence",
            changed(&|shards| {
                shards[1] = falling.clone();
            }),
        ),
        (
            "two shards of the same image each whole",
            vec![stream.clone(), stream.clone(), Vec::new()],
        ),
    ]
    .map(|(case, shards)| (case.into(), shards))
    .into()
}

/// An image in `count` shards, the first of which holds the metadata; what it is, and where each
/// piece goes, says `below`, which gives a number below the one that it is given.
pub fn metadata_first(count: usize, mut below: impl FnMut(usize) -> usize) -> Vec<Vec<u8>> {
    let mut set = Set { shards: vec![Writer::new(); count], begun: vec![false; count], seq: 0 };
    for shard in 1..count {
        set.put(shard, &Body::Filename(b"cpuinfo.img".to_vec()), b"");
    }
    for index in 0..below(6) {
        let name = Body::Filename(format!("pages-{index}.img").into_bytes());
        set.put(0, &name, b"");
        for _ in 0..below(4) {
            if below(2) == 0 {
                set.small(&format!("core-{}.img", below(3)), &vec![b'c'; below(300)]);
            }
            // Whoever reads these shards alone must know what the data is of.
            set.put(1 + below(count - 1), &name, b"");
            for _ in 0..below(3) {
                let data = vec![b'p'; 1 + below(5000)];
                set.put(1 + below(count - 1), &Body::FileData(data.len() as u32), &data);
            }
        }
        set.put(1 + below(count - 1), &name, b"");
        set.put(1 + below(count - 1), &Body::FileEof, b"");
    }
    set.small("cpuinfo.img", b"cpu");
    set.small("inventory.img", b"all");
    set.put(below(count), &Body::ImageEof, b"");
    set.shards.into_iter().map(Writer::finish).collect()
}

/// Shards that are being written.
struct Set {
    shards: Vec<Writer>,
    /// Which of them have said what they are.
    begun: Vec<bool>,
    seq: u64,
}

impl Set {
    fn put(&mut self, shard: usize, body: &Body, payload: &[u8]) {
        let of = self.shards.len() as u64;
        let writer = std::mem::take(&mut self.shards[shard]).seq(self.seq);
        let written = match std::mem::replace(&mut self.begun[shard], true) {
            true => writer.marker(body),
            false => writer.split_marker(body, shard as u64, of, shard == 0),
        };
        self.shards[shard] = written.raw(payload);
        self.seq += 1;
    }

    /// A whole file, in the metadata shard.
    fn small(&mut self, name: &str, content: &[u8]) {
        self.put(0, &Body::Filename(name.as_bytes().to_vec()), b"");
        self.put(0, &Body::FileData(content.len() as u32), content);
        self.put(0, &Body::FileEof, b"");
    }
}

/// Does something to a set of shards: loses, repeats, cuts, joins, swaps or changes. What, says
/// `below`, which gives a number below the one that it is given.
pub fn mutate(shards: &mut Vec<Vec<u8>>, mut below: impl FnMut(usize) -> usize) {
    let (one, other) = (below(shards.len()), below(shards.len()));
    let at = below(shards[one].len() + 1);
    let to = below(shards[other].len() + 1);
    match below(10) {
        0 => shards[one].truncate(at),
        1 => shards[one] = shards[other].clone(),
        2 => shards.swap(one, other),
        3 => drop(shards[one].drain(..at)),
        4 => shards.push(Vec::new()),
        5 => {
            let tail = shards[one].split_off(at);
            shards[other].extend(tail);
        }
        6 => {
            let head = shards[one][..at].to_vec();
            let to = to.min(shards[other].len());
            shards[other].splice(to..to, head);
        }
        7 if at < shards[one].len() => shards[one][at] ^= 1 << below(8),
        8 => shards[one].extend((0..at).map(|_| below(256) as u8)),
        _ if shards.len() > 1 => drop(shards.remove(one)),
        _ => {}
    }
}
