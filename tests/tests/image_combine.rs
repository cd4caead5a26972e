//! `image-combine`: the memory of an image and its increments, page by page, and chains that are
//! none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::{TempDir, tempdir};
use tests::criu::pipe;
use tests::filters::assert_same_files;
use tests::page_server::{Entry, IN_PARENT, LAZY, Layout, PAGE, PRESENT, pagemap, read_pagemap};
use tests::pipeline::{Filter, Finished, collect_from};
use tests::random::{Random, for_each_seed};
use tests::stream::{Body, Files, Writer, looks_complete, read_stream};

fn directory() -> TempDir {
    tempdir().expect("a directory")
}

fn combine() -> Filter {
    Filter::new("image-combine").progress_apart()
}

/// Runs the filter to its end, with its stream.
fn finish(filter: Filter) -> Finished {
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = filter.stdout(write_end).start();
    let stdout = collect_from(read_end);
    let mut finished = running.finish();
    finished.stdout = stdout.join().expect("stdout is collected");
    finished
}

/// The files as a stream with these identities; in chunks, two files mixed with each other.
fn stream(files: &Files, id: u8, parent: Option<u8>) -> Vec<u8> {
    let mut writer = Writer::new();
    let mut first = Some((id, parent));
    let mut name = |writer: Writer, name: &str| match first.take() {
        Some((id, parent)) => {
            let body = Body::Filename(name.as_bytes().to_vec());
            writer.increment_marker(&body, [id; 16], parent.map(|parent| [parent; 16]))
        }
        None => writer.name(name),
    };
    let files: Vec<_> = files.iter().collect();
    for pair in files.chunks(2) {
        let longest = pair.iter().map(|(_, content)| content.len()).max().unwrap_or(0);
        for at in (0..=longest).step_by(10_000) {
            for (file, content) in pair {
                writer = name(writer, file);
                let chunk = &content[at.min(content.len())..(at + 10_000).min(content.len())];
                if !chunk.is_empty() {
                    writer = writer.data(chunk);
                }
            }
        }
        for (file, _) in pair {
            writer = name(writer, file).file_eof();
        }
    }
    writer.image_eof().finish()
}

/// A page's address and what is in it.
type Memory = BTreeMap<u64, [u8; PAGE]>;

/// A process tree whose memory changes, by the names of its pagemaps.
#[derive(Clone, Default)]
struct Tree {
    memories: BTreeMap<String, Memory>,
    pages: u64,
}

impl Tree {
    fn page(&mut self) -> [u8; PAGE] {
        self.pages += 1;
        let mut page = [self.pages as u8; PAGE];
        page[..8].copy_from_slice(&self.pages.to_le_bytes());
        page
    }

    /// Something that happens between two images: the pages that it has changed.
    fn live(&mut self, random: &mut Random) -> BTreeMap<String, Vec<u64>> {
        let mut dirty = BTreeMap::new();
        if self.memories.len() > 1 && random.one_in(4) {
            let gone = self.memories.keys().nth(random.below(self.memories.len()));
            let gone = gone.cloned().expect("a task");
            self.memories.remove(&gone);
        }
        if self.memories.len() < 4 {
            let id = 1 + random.below(1000);
            let name = random.pick(&["pagemap-", "pagemap-shmem-"]);
            self.memories.entry(format!("{name}{id}.img")).or_default();
        }
        for name in self.memories.keys().cloned().collect::<Vec<_>>() {
            let mut changed = Vec::new();
            for _ in 0..random.magnitude_below(60) {
                let start = (random.below(400) * PAGE) as u64;
                if random.one_in(5) {
                    self.memories.get_mut(&name).expect("a task").remove(&start);
                    changed.retain(|dirty| *dirty != start);
                } else {
                    let page = self.page();
                    self.memories.get_mut(&name).expect("a task").insert(start, page);
                    changed.push(start);
                }
            }
            dirty.insert(name, changed);
        }
        dirty
    }

    /// Its image, in which what is not among the `dirty` pages is in the parent.
    fn image(&self, random: &mut Random, dirty: Option<&BTreeMap<String, Vec<u64>>>) -> Files {
        let layout = random.pick(&[Layout::Short, Layout::Long]);
        let mut files = Files::new();
        for (pages_id, (name, memory)) in (1..).zip(&self.memories) {
            let (mut entries, mut content): (Vec<Entry>, Vec<u8>) = (Vec::new(), Vec::new());
            for (start, page) in memory {
                let is_here = dirty.is_none_or(|dirty| dirty[name].contains(start));
                let flags = match is_here {
                    true => random.pick(&[PRESENT, PRESENT, PRESENT, PRESENT | LAZY]),
                    false => IN_PARENT,
                };
                if is_here {
                    content.extend(page);
                }
                match entries.last_mut() {
                    Some(last)
                        if last.flags == flags
                            && last.start + last.pages * PAGE as u64 == *start
                            && !random.one_in(10) =>
                    {
                        last.pages += 1;
                    }
                    _ => entries.push(Entry { start: *start, pages: 1, flags }),
                }
            }
            files.insert(name.clone(), pagemap(layout, pages_id, &entries));
            files.insert(format!("pages-{pages_id}.img"), content);
        }
        files.insert("inventory.img".into(), self.pages.to_le_bytes().to_vec());
        files.insert("core-1.img".into(), random.bytes(100));
        files
    }

    /// Fails unless these files have just this memory.
    fn assert_is(&self, files: &Files) {
        let maps: Vec<_> = files.keys().filter(|name| name.starts_with("pagemap-")).collect();
        assert_eq!(maps, self.memories.keys().collect::<Vec<_>>());
        for (name, memory) in &self.memories {
            let (pages_id, entries) = read_pagemap(&files[name]);
            let mut pages = files[&format!("pages-{pages_id}.img")].chunks(PAGE);
            let mut found = Memory::new();
            for entry in entries {
                assert!(entry.flags & PRESENT != 0 && entry.flags & IN_PARENT == 0, "{entry:?}");
                for page in 0..entry.pages {
                    let content = pages.next().expect("a page").try_into().expect("a page");
                    found.insert(entry.start + page * PAGE as u64, content);
                }
            }
            assert!(found == *memory, "{name} has other pages");
            assert_eq!(pages.next(), None, "{name}: more pages than it lists");
        }
    }
}

/// Streams of a base and increments, and what the last one is of.
fn chain(random: &mut Random, increments: u8) -> (Vec<Vec<u8>>, Tree, Files) {
    let mut tree = Tree::default();
    tree.live(random);
    tree.live(random);
    let mut files = tree.image(random, None);
    let mut streams = vec![stream(&files, 1, None)];
    for id in 2..increments + 2 {
        let dirty = tree.live(random);
        files = tree.image(random, Some(&dirty));
        streams.push(stream(&files, id, Some(id - 1)));
    }
    (streams, tree, files)
}

/// Files of the streams.
fn write(dir: &Path, streams: &[Vec<u8>]) -> Vec<PathBuf> {
    let write = |(index, stream): (usize, &Vec<u8>)| {
        let path = dir.join(format!("{index}.img"));
        fs::write(&path, stream).expect("a file");
        path
    };
    streams.iter().enumerate().map(write).collect()
}

fn assert_combines(finished: &Finished, tree: &Tree, last: &Files) {
    finished.succeeded();
    let files = read_stream(&finished.stdout).expect("a valid stream");
    tree.assert_is(&files);
    assert_eq!(files["core-1.img"], last["core-1.img"]);
    assert_eq!(files["inventory.img"], last["inventory.img"]);
    assert_eq!(files.len(), last.len());
    assert_eq!(finished.shard_sizes(), [finished.stdout.len() as u64]);
}

#[test]
fn files_combine_to_the_memory_of_the_last() {
    for_each_seed(30, |seed| {
        let mut random = Random::new(seed);
        let increments = random.below(5) as u8;
        let (streams, tree, last) = chain(&mut random, increments);
        let dir = directory();
        let finished = finish(combine().args(write(dir.path(), &streams)));
        assert_combines(&finished, &tree, &last);
    });
}

#[test]
fn pipes_combine_to_the_memory_of_the_last() {
    for_each_seed(30, |seed| {
        let mut random = Random::new(seed);
        let (streams, tree, last) = chain(&mut random, 3);
        let mut filter = combine();
        for (fd, stream) in (20..).zip(streams) {
            let (read_end, write_end) = pipe(None).expect("a pipe");
            filter = filter.fd(fd, read_end).arg(format!("/dev/fd/{fd}"));
            thread::spawn(move || File::from(write_end).write_all(&stream));
        }
        assert_combines(&finish(filter), &tree, &last);
    });
}

#[test]
fn images_may_stand_one_after_the_other() {
    for_each_seed(10, |seed| {
        let mut random = Random::new(seed);
        let (streams, tree, last) = chain(&mut random, 3);
        let all = streams.concat();
        assert_combines(&combine().arg("-").run(&all), &tree, &last);
        let dir = directory();
        let path = write(dir.path(), &[all]).remove(0);
        let stdin = OwnedFd::from(File::open(&path).expect("a file"));
        assert_combines(&finish(combine().arg("-").stdin(stdin)), &tree, &last);
        assert_combines(&finish(combine().arg(path)), &tree, &last);
    });
}

#[test]
fn what_was_combined_is_a_base() {
    let mut random = Random::new(5);
    let (streams, tree, last) = chain(&mut random, 3);
    let dir = directory();
    let paths = write(dir.path(), &streams);
    let first = finish(combine().args(&paths[..2]));
    first.succeeded();
    let base = dir.path().join("base.img");
    fs::write(&base, &first.stdout).expect("a file");
    assert_combines(&finish(combine().arg(base).args(&paths[2..])), &tree, &last);
}

#[test]
fn one_image_is_copied() {
    let mut files = Files::new();
    files.insert("a".into(), Random::new(1).bytes(100_000));
    files.insert("inventory.img".into(), b"last".to_vec());
    files.insert("z".into(), Vec::new());
    let written = stream(&files, 1, None);
    let dir = directory();
    let finished = finish(combine().args(write(dir.path(), &[written])));
    assert_same_files(&read_stream(&finished.succeeded().stdout).expect("valid"), &files, "a copy");
    assert!(looks_complete(&finished.stdout));
}

#[test]
fn a_chain_that_is_none_is_refused_by_name() {
    let mut random = Random::new(7);
    let (streams, ..) = chain(&mut random, 3);
    let (other, ..) = chain(&mut random, 0);
    let dir = directory();
    let paths = write(dir.path(), &streams);
    let path = |index: usize| paths[index].clone();
    let stranger = dir.path().join("stranger.img");
    let body = Body::Filename(b"inventory.img".to_vec());
    let written = Writer::new().increment_marker(&body, [90; 16], Some([91; 16]));
    fs::write(&stranger, written.file_eof().image_eof().finish()).expect("a file");
    let whole = dir.path().join("whole.img");
    fs::write(&whole, &other[0]).expect("a file");
    let nameless = dir.path().join("nameless.img");
    fs::write(&nameless, Writer::new().file("a", b"a").image_eof().finish()).expect("a file");
    let cases: Vec<(&str, Vec<PathBuf>, &str)> = vec![
        ("no base", vec![path(1), path(2)], "1.img: an increment of image 0101"),
        ("a missing link", vec![path(0), path(2)], "2.img: an increment of image 0202"),
        ("wrong order", vec![path(0), path(1), path(3)], "3.img: an increment of image 0303"),
        ("twice", vec![path(0), path(1), path(1)], "1.img: an increment of "),
        ("a stranger", vec![path(0), stranger], "stranger.img: an increment of image 5b5b"),
        ("another base", vec![path(0), whole], "whole.img: not an increment"),
        ("a base without a name", vec![nameless, path(1)], "1.img: an increment of image 0101"),
        ("nothing", vec![PathBuf::from("/dev/null")], "/dev/null: truncated after 0 bytes"),
        ("no file", vec![dir.path().join("gone")], "gone: No such file"),
        ("a directory", vec![dir.path().to_owned()], "is not a pipe"),
    ];
    for (case, operands, expected) in cases {
        let finished = finish(combine().args(operands));
        finished.refused_with_a_place(case);
        assert!(finished.stderr[0].contains(expected), "{case}: {:?}", finished.stderr);
        assert!(!looks_complete(&finished.stdout), "{case}");
    }
    combine().start().finish().refused(2, "no operand");
}

#[test]
fn images_that_contradict_themselves_are_refused() {
    let here = |start, pages| Entry { start, pages, flags: PRESENT };
    let held = |start, pages| Entry { start, pages, flags: IN_PARENT };
    let image = |maps: &[(&str, Vec<u8>)], pages: usize| {
        let mut files: Files = Files::new();
        files.extend(maps.iter().map(|(name, map)| ((*name).to_owned(), map.clone())));
        files.insert("pages-1.img".into(), vec![1; pages * PAGE]);
        files.insert("inventory.img".into(), Vec::new());
        files
    };
    let map = |entries: &[Entry]| pagemap(Layout::Long, 1, entries);
    let base = image(&[("pagemap-1.img", map(&[here(0x1000, 2)]))], 2);
    let cases = [
        ("not held", image(&[("pagemap-1.img", map(&[held(0x1000, 3)]))], 0), "0x3000"),
        ("before it", image(&[("pagemap-1.img", map(&[held(0, 2)]))], 0), "0x0"),
        ("another task", image(&[("pagemap-2.img", map(&[held(0x1000, 1)]))], 0), "task 2"),
        ("too many pages", image(&[("pagemap-1.img", map(&[here(0, 1)]))], 2), "8192 bytes"),
        ("too few pages", image(&[("pagemap-1.img", map(&[here(0, 2)]))], 1), "4096 bytes"),
        ("twice", image(&[("pagemap-1.img", map(&[here(0, 2), here(0x1000, 1)]))], 3), "0x1000"),
        ("no map", image(&[("pagemap-1.img", b"what?".to_vec())], 0), "pagemap-1.img"),
        (
            "the same pages",
            image(
                &[("pagemap-1.img", map(&[here(0, 1)])), ("pagemap-2.img", map(&[here(0, 1)]))],
                1,
            ),
            "two pagemaps",
        ),
    ];
    for (case, increment, expected) in cases {
        let dir = directory();
        let streams = [stream(&base, 1, None), stream(&increment, 2, Some(1))];
        let finished = finish(combine().args(write(dir.path(), &streams)));
        finished.refused_with_a_place(case);
        assert!(finished.stderr[0].contains("1.img: "), "{case}: {:?}", finished.stderr);
        assert!(finished.stderr[0].contains(expected), "{case}: {:?}", finished.stderr);
        assert!(!looks_complete(&finished.stdout), "{case}");
    }
}

#[test]
fn every_cut_is_refused() {
    let mut random = Random::new(3);
    let (streams, ..) = chain(&mut random, 1);
    let dir = directory();
    let paths = write(dir.path(), &streams);
    let cuts = [0, 1, streams[1].len() / 3, streams[1].len() / 2, streams[1].len() - 1];
    for cut in cuts {
        let path = dir.path().join("cut.img");
        fs::write(&path, &streams[1][..cut]).expect("a file");
        let finished = finish(combine().arg(&paths[0]).arg(&path));
        finished.refused_with_a_place(&format!("cut at {cut}"));
        assert!(finished.stderr[0].contains("cut.img: "), "{:?}", finished.stderr);
        let piped = combine().arg(&paths[0]).arg("-").run(&streams[1][..cut]);
        piped.refused_with_a_place(&format!("cut at {cut} of a pipe"));
        assert!(!looks_complete(&piped.stdout));
    }
}

/// Bytes that the program's own files in memory take.
fn in_memory(pid: nix::unistd::Pid) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let blocks = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let is_memory = target.to_string_lossy().contains("memfd:image-combine");
        let metadata = fs::metadata(entry.path()).ok().filter(|_| is_memory)?;
        Some(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
    });
    blocks.sum()
}

/// A base of so many pages and increments, each of which has half of them.
fn halves(pages: u64, increments: u8) -> Vec<Vec<u8>> {
    let image = |id: u8| {
        let half = pages / 2;
        let (first, second) = match id {
            1 => (PRESENT, PRESENT),
            id if id % 2 == 0 => (PRESENT, IN_PARENT),
            _ => (IN_PARENT, PRESENT),
        };
        let entries = [
            Entry { start: 0, pages: half, flags: first },
            Entry { start: half * PAGE as u64, pages: half, flags: second },
        ];
        let here = if id == 1 { pages } else { half };
        let mut files = Files::new();
        files.insert("pages-1.img".into(), vec![id; here as usize * PAGE]);
        files.insert("pagemap-1.img".into(), pagemap(Layout::Long, 1, &entries));
        files.insert("inventory.img".into(), Vec::new());
        stream(&files, id, (id > 1).then(|| id - 1))
    };
    (1..increments + 2).map(image).collect()
}

#[test]
fn what_comes_from_a_pipe_is_held_once() {
    const PAGES: u64 = 8192;
    let image = PAGES * PAGE as u64;
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let (out, stdout) = pipe(None).expect("a pipe");
    let running = combine().arg("-").stdin(read_end).stdout(stdout).start();
    let stdout = collect_from(out);
    let mut feed = File::from(write_end);
    let mut peak = 0;
    for stream in halves(PAGES, 6) {
        for piece in stream.chunks(1 << 20) {
            feed.write_all(piece).expect("the filter reads");
            peak = peak.max(in_memory(running.pid()));
        }
    }
    // What has been superseded was given back: the image, and the last increment on its way.
    assert!(peak >= image, "the memory is not where this test looks: {peak}");
    assert!(peak < image + image / 2 + image / 8, "held {peak} bytes for {image}");
    drop(feed);
    running.finish().succeeded();
    assert!(looks_complete(&stdout.join().expect("the stream")));
}

#[test]
fn files_are_not_held() {
    const PAGES: u64 = 8192;
    let dir = directory();
    let paths = write(dir.path(), &halves(PAGES, 2));
    let (read_end, write_end) = pipe(None).expect("a pipe");
    let running = combine().args(paths).stdout(write_end).start();
    let mut out = File::from(read_end);
    let mut held = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut out, &mut held).expect("the stream");
    assert_eq!(in_memory(running.pid()), 0);
    let peak = tests::memory::peak(running.pid());
    assert!(peak < 16 << 20, "holds {peak} bytes");
    std::io::Read::read_to_end(&mut out, &mut held).expect("the stream");
    running.finish().succeeded();
}
