//! Restores that begin when the metadata is there, and what then goes wrong.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::bench::{Bench, skip};
use crate::pipeline::Pipeline;
use crate::victim::{Statuses, Victim};

/// `criu restore`, as the command of `image-serve`. It is started when CRIU may begin.
fn restore(bench: &Bench) -> String {
    let criu = bench.criu.program().display();
    format!(
        "image-serve -D restore -p 3 3>restore.progress -- {criu} restore --stream -D restore \
         --restore-detached -v4 --network-lock skip --tcp-established -o restore.log"
    )
}

/// Dumps the victim into the shards `0.zst`, `1.zst` and so on, the metadata first if there are two.
fn dump(bench: &Bench, victim: &mut Victim, shards: usize) -> Statuses {
    for directory in ["dump", "restore"] {
        fs::create_dir_all(bench.scratch().join(directory)).expect("an images directory");
    }
    let criu = bench.criu.program().display();
    let pid = victim.pid();
    let metadata_first = if shards > 1 { "-m" } else { "" };
    let script = format!(
        "criu-sock-capture -D dump -- {criu} dump --stream -D dump -t {pid} \
         -v4 --network-lock skip --tcp-established -o dump.log |
            shard-split {metadata_first} -n {shards} --filter 'zstd -q --check > $SHARD.zst'"
    );
    Pipeline::start(bench, "dump", &script).must_succeed();
    victim.reap()
}

/// The names of the progress lines, in their order: the counters are `json`.
fn progress(bench: &Bench) -> Vec<String> {
    let lines = fs::read_to_string(bench.scratch().join("restore.progress")).expect("the lines");
    let name = |line: &str| if line.starts_with('{') { "json".into() } else { line.into() };
    lines.lines().map(name).collect()
}

/// Restores through this filter, and fails the test if that works.
fn must_not_restore(bench: &Bench, shards: usize, filter: &str, case: &str) {
    let script = format!("shard-merge -n {shards} --filter '{filter}' | {}", restore(bench));
    let mut pipeline = Pipeline::start(bench, "restore", &script);
    assert_ne!(pipeline.status(), 0, "{case}: it works");
    assert!(!progress(bench).contains(&"json".into()), "{case}: it is said to be whole");
}

#[test]
fn a_tree_goes_on_however_slow_which_shard_is() {
    let name = "however_slow_which_shard_is";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    if !std::path::Path::new("/usr/bin/pv").exists() {
        skip::<()>(name, "pv is not installed");
        return;
    }
    let mut victim = Victim::start(&bench, &["--megabytes", "24"]);
    for (shards, limited) in [
        (1, "true"),
        (2, "true"),
        (3, "test $SHARD = 0"),
        (4, "test $SHARD = 1"),
        (5, "test $SHARD = 4"),
        (6, "test $SHARD -gt 0"),
        (7, "test $SHARD = 0"),
        (8, "false"),
    ] {
        let dumped = dump(&bench, &mut victim, shards);
        let filter =
            format!("if {limited}; then pv -qL 30m $SHARD.zst; else cat $SHARD.zst; fi | zstd -dc");
        let script = format!("shard-merge -n {shards} --filter '{filter}' | {}", restore(&bench));
        Pipeline::start(&bench, "restore", &script).must_succeed();
        victim.must_go_on(&dumped);
        match (shards, limited) {
            (1, _) => assert_eq!(progress(&bench), ["json", "socket-init"]),
            (_, "true") => assert_eq!(progress(&bench), ["socket-init", "json"]),
            _ => {}
        }
    }
}

#[test]
fn nothing_runs_of_an_image_that_is_cut_or_wrong() {
    let Some(bench) = Bench::set_up("cut_or_wrong") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "24"]);
    let dumped = dump(&bench, &mut victim, 3);
    let length = |shard: usize| {
        fs::metadata(bench.scratch().join(format!("{shard}.zst"))).expect("a shard").len()
    };
    let mut begun = 0;
    for tenth in 0..10 {
        let (shard, cut) = (1 + tenth % 2, length(1 + tenth % 2) * tenth as u64 / 10);
        // As if the decompressor did not see it.
        let filter = format!(
            "if test $SHARD = {shard}; then head -c {cut} $SHARD.zst | zstd -dcq; true; \
             else zstd -dc $SHARD.zst; fi"
        );
        let case = format!("shard {shard} after {cut} bytes");
        must_not_restore(&bench, 3, &filter, &case);
        victim.must_be_gone(&dumped, &case);
        begun += usize::from(progress(&bench).contains(&"socket-init".into()));
    }
    assert!(begun > 4, "CRIU was started in {begun} of 10 cases only");
    // The checksum of a shard's content, at its very end.
    let path = bench.scratch().join("2.zst");
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a shard");
    let (at, mut byte) = (length(2) - 1, [0]);
    file.read_exact_at(&mut byte, at).expect("its last byte");
    file.write_all_at(&[byte[0] ^ 1], at).expect("another one");
    must_not_restore(&bench, 3, "zstd -dcq $SHARD.zst", "a wrong checksum");
    victim.must_be_gone(&dumped, "a wrong checksum");
    file.write_all_at(&byte, at).expect("the right one");
    let script = format!("shard-merge -n 3 --filter 'zstd -dc $SHARD.zst' | {}", restore(&bench));
    Pipeline::start(&bench, "restore", &script).must_succeed();
    victim.must_go_on(&dumped);
}
