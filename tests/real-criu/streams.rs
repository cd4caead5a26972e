//! From a running tree to a stored image and back, as users chain the filters.
//!
//! In every script the images directories are `dump` and `restore`, and
//! progress goes to files with the same names and `.progress`. Background jobs
//! are waited for by process id: bash forgets the `%1` of a job that has ended.

use std::fs;

use crate::bench::Bench;
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::victim::{Statuses, Victim};

/// Dumps the victim into the pipeline `script`, which stores the image.
pub(crate) fn dump_into(bench: &Bench, victim: &mut Victim, script: &str) -> Statuses {
    let images = bench.directory("dump");
    let mut pipeline = Pipeline::start(bench, "dump", script);
    pipeline.wait_for_progress("dump.progress", "socket-init");
    bench.criu.dump(Image::Stream, &images, victim.pid(), &[]).must_succeed();
    pipeline.must_succeed();
    victim.reap()
}

/// Restores from the pipeline `script`.
pub(crate) fn restore_from(bench: &Bench, script: &str) {
    let images = bench.directory("restore");
    let mut pipeline = Pipeline::start(bench, "restore", script);
    pipeline.wait_for_progress("restore.progress", "socket-init");
    bench.criu.restore(Image::Stream, &images, &[]).must_succeed();
    pipeline.must_succeed();
}

#[test]
fn a_tree_goes_on_after_one_stream_through_lz4() {
    let Some(bench) = Bench::set_up("one_stream_through_lz4") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let dumped = dump_into(
        &bench,
        &mut victim,
        "criu-sock-capture -D dump -p 3 3>dump.progress | lz4 -q > image.lz4",
    );
    restore_from(&bench, "lz4 -dc image.lz4 | image-serve -D restore -p 3 3>restore.progress");
    victim.must_go_on(&dumped);
}

#[test]
fn a_tree_of_twelve_processes_goes_on_after_three_shards_through_zstd() {
    let Some(bench) = Bench::set_up("three_shards_through_zstd") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--processes", "12"]);
    let dumped = dump_into(
        &bench,
        &mut victim,
        "mkfifo 0 1 2
        zstd -q < 0 > 0.zst & a=$!
        zstd -q < 1 > 1.zst & b=$!
        zstd -q < 2 > 2.zst & c=$!
        criu-sock-capture -D dump -p 3 3>dump.progress |
            shard-split -s 10,11,12 10>0 11>1 12>2 &&
            wait $a && wait $b && wait $c",
    );
    restore_from(
        &bench,
        "shard-merge -s 10,11,12 10< <(zstd -dc 0.zst) 11< <(zstd -dc 1.zst) 12< <(zstd -dc 2.zst) |
            image-serve -D restore -p 3 3>restore.progress",
    );
    victim.must_go_on(&dumped);
}

#[test]
fn a_tree_goes_on_from_an_extracted_directory() {
    let Some(bench) = Bench::set_up("an_extracted_directory") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let dumped =
        dump_into(&bench, &mut victim, "criu-sock-capture -D dump -p 3 3>dump.progress > image");
    let images = bench.directory("extracted");
    Pipeline::start(&bench, "extract", "image-extract -D extracted < image").must_succeed();
    bench.criu.restore(Image::Files, &images, &[]).must_succeed();
    victim.must_go_on(&dumped);
}

#[test]
fn a_tarball_travels_with_the_image() {
    let Some(bench) = Bench::set_up("a_tarball_travels") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    fs::write(bench.directory("files").join("settings"), "kept").expect("write a file");
    let unpacked = bench.directory("unpacked");
    let dumped = dump_into(
        &bench,
        &mut victim,
        "criu-sock-capture -D dump -e fs.tar:4 4< <(tar -C files -cf - .) -p 3 3>dump.progress |
            zstd -q > image.zst",
    );
    restore_from(
        &bench,
        "mkfifo tar
        tar -C unpacked -xf - < tar & unpacking=$!
        zstd -dc image.zst |
            image-serve -D restore -e fs.tar:4 4>tar -p 3 3>restore.progress &&
            wait $unpacking",
    );
    victim.must_go_on(&dumped);
    let settings = fs::read_to_string(unpacked.join("settings")).expect("read the unpacked file");
    assert_eq!(settings, "kept");
}

#[test]
fn a_tree_goes_on_after_the_command_of_criu_image_streamer() {
    let Some(bench) = Bench::set_up("criu_image_streamer") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let dumped = dump_into(
        &bench,
        &mut victim,
        "criu-image-streamer --images-dir dump --progress-fd 3 capture 3>dump.progress > image",
    );
    restore_from(
        &bench,
        "criu-image-streamer --images-dir restore --progress-fd 3 serve 3>restore.progress < image",
    );
    victim.must_go_on(&dumped);
}

#[test]
fn a_tree_migrates_through_shards_joined_by_pipes() {
    let Some(bench) = Bench::set_up("shards_joined_by_pipes") else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let [from, to] = ["dump", "restore"].map(|name| bench.directory(name));
    let mut pipeline = Pipeline::start(
        &bench,
        "migrate",
        "mkfifo 0 1 2
        criu-sock-capture -D dump -p 3 3>dump.progress |
            shard-split -s 10,11,12 10>0 11>1 12>2 & source=$!
        shard-merge -s 10,11,12 10<0 11<1 12<2 |
            image-serve -D restore -p 3 3>restore.progress &&
            wait $source",
    );
    pipeline.wait_for_progress("dump.progress", "socket-init");
    bench.criu.dump(Image::Stream, &from, victim.pid(), &[]).must_succeed();
    let dumped = victim.reap();
    pipeline.wait_for_progress("restore.progress", "socket-init");
    bench.criu.restore(Image::Stream, &to, &[]).must_succeed();
    pipeline.must_succeed();
    victim.must_go_on(&dumped);
}
