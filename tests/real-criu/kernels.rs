//! Increments need a kernel that can tell which pages have changed. Few machines have one, so
//! Debian's is booted.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::{Bench, program, skip};

/// What `tests/kernels/boot` ends with where it cannot boot.
const CANNOT: i32 = 77;

#[test]
fn increments_and_rounds_have_what_has_changed_and_combine_to_the_whole() {
    let name = "increments_and_rounds_have_what_has_changed_and_combine_to_the_whole";
    // It brings its own kernel, and this machine's CRIU.
    let Some(bench) = Bench::set_up("increments") else { return };
    drop(bench);
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let programs = [
        "victim",
        "criu-page-capture",
        "image-combine",
        "image-serve",
        "image-extract",
        "criu-checkpoint",
        "criu-restore",
        "criu-migrate",
    ];
    let booted = Command::new(kernels.join("boot"))
        .arg("bookworm")
        .arg(kernels.join("increments"))
        .args(programs.map(program))
        .stdin(Stdio::null())
        .output()
        .expect("start tests/kernels/boot");
    let said = String::from_utf8_lossy(&booted.stdout);
    if booted.status.code() == Some(CANNOT) {
        let reason = said.lines().last().unwrap_or_default();
        skip::<()>(name, reason.strip_prefix("skipped: ").unwrap_or(reason));
        return;
    }
    let complaints = String::from_utf8_lossy(&booted.stderr);
    assert!(booted.status.success() && said.contains("\nall is well\n"), "{said}{complaints}");
}
