//! Whatever happens to one process of a checkpoint or a restore, or to all, and whenever: the
//! process that is held runs, or a whole image of it restores.
//!
//! Here with the stand-in for CRIU; `real-criu/chaos.rs` has the same with the real one.

use tests::chaos::{World, run};
use tests::pipeline::program;

fn stand_in() -> World {
    World {
        criu: program("stand-in-criu"),
        options: Vec::new(),
        is_stand_in: true,
        at_once: 4,
        megabytes: 4,
    }
}

#[test]
fn no_process_is_lost_in_100_cases() {
    run(&stand_in(), 100);
}

#[test]
#[ignore = "takes minutes: make check-load"]
fn no_process_is_lost_in_1000_cases() {
    run(&stand_in(), 1000);
}
