//! Dump and restore, many times in a row.

use std::fs;
use std::path::Path;

use crate::bench::Bench;
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::victim::Victim;

const CYCLES: usize = 200;

/// Through three shards, without a disk between.
const SCRIPT: &str = "mkfifo 0 1 2
    criu-sock-capture -D dump -p 3 3>dump.progress |
        shard-split -s 10,11,12 10>0 11>1 12>2 & source=$!
    shard-merge -s 10,11,12 10<0 11<1 12<2 |
        image-serve -D restore -p 3 3>restore.progress && wait $source";

#[test]
#[ignore = "takes minutes: make check-load"]
fn two_hundred_cycles_leave_nothing_behind() {
    let Some(bench) = Bench::set_up("two_hundred_cycles") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
    let (from, to) = (bench.directory("dump"), bench.directory("restore"));
    cycle(&bench, &mut victim, &from, &to);
    let before = traces(bench.scratch());
    for number in 1..CYCLES {
        cycle(&bench, &mut victim, &from, &to);
        assert_eq!(traces(bench.scratch()), before, "after {} cycles", number + 1);
        if number % 20 == 0 {
            println!("cycles: {number} of {CYCLES}");
        }
    }
}

fn cycle(bench: &Bench, victim: &mut Victim, from: &Path, to: &Path) {
    let mut pipeline = Pipeline::start(bench, "migrate", SCRIPT);
    pipeline.wait_for_progress("dump.progress", "socket-init");
    bench.criu.dump(Image::Stream, from, victim.pid(), &[]).must_succeed();
    let dumped = victim.reap();
    pipeline.wait_for_progress("restore.progress", "socket-init");
    bench.criu.restore(Image::Stream, to, &[]).must_succeed();
    pipeline.must_succeed();
    victim.must_go_on(&dumped);
    for name in ["0", "1", "2", "dump.progress", "restore.progress"] {
        fs::remove_file(bench.scratch().join(name)).expect("the pipeline made it");
    }
}

/// What this process has open, processes of the pipelines, sockets of the filters, and files:
/// their numbers.
fn traces(scratch: &Path) -> [usize; 4] {
    let descriptors = fs::read_dir("/proc/self/fd").expect("/proc").count();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let is_pipeline = |process: &fs::DirEntry| {
        fs::read_link(process.path().join("cwd")).is_ok_and(|directory| directory == scratch)
    };
    let sockets = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    let files = |name: &str| fs::read_dir(scratch.join(name)).expect("a directory").count();
    [
        descriptors,
        processes.filter(is_pipeline).count(),
        sockets.matches(&*scratch.to_string_lossy()).count(),
        files("") + files("dump") + files("restore"),
    ]
}
