//! Chaos with the real CRIU: see `tests/tests/chaos.rs`, which has the same with the stand-in.
//!
//! Here the process has a TCP connection, which must be whole too.

use tests::chaos::{World, run};

use crate::bench::Bench;

fn cases(name: &str, cases: u64) {
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    if !bench.tcp() {
        return;
    }
    let options = ["--tcp-established", "--network-lock", "skip"];
    let world = World {
        criu: bench.criu.program().to_owned(),
        options: options.map(String::from).to_vec(),
        is_stand_in: false,
        at_once: 3,
        megabytes: 8,
    };
    run(&world, cases);
}

#[test]
fn no_process_is_lost_in_20_cases() {
    cases("chaos_20", 20);
}

#[test]
#[ignore = "takes minutes: make check-load"]
fn no_process_is_lost_in_200_cases() {
    cases("chaos_200", 200);
}
