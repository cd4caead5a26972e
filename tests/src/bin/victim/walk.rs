//! `victim walk DIR MEGABYTES`

use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::Fault;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// Starts a walker of each kind, and is one itself.
pub(crate) fn run(directory: &str, megabytes: usize) -> Result<(), Fault> {
    let program = std::env::current_exe()?;
    for kind in &KINDS[1..] {
        let mut walker = Command::new(&program);
        walker.args(["walker", directory, &megabytes.to_string(), kind]).spawn()?;
    }
    walk(Path::new(directory), megabytes, KINDS[0])
}

/// How the pages are gone through: in what order, and whether they are changed.
pub(crate) const KINDS: [&str; 4] =
    ["sequential-reader", "random-reader", "sequential-writer", "random-writer"];

/// Goes through all pages, again and again, and finds each as it was left. How many it has seen
/// goes to a file that is named after the kind, or what is wrong.
pub(crate) fn walk(directory: &Path, megabytes: usize, kind: &str) -> Result<(), Fault> {
    let path = directory.join(kind);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let count = (megabytes << 20) / PAGE;
    let mut memory = vec![0; count * WORDS + WORDS];
    let start = memory.as_ptr().align_offset(PAGE);
    let pages = black_box(&mut memory[start..][..count * WORDS]);
    for (index, page) in pages.chunks_exact_mut(WORDS).enumerate() {
        page.fill(word(index, 0));
    }
    fs::write(directory.join(format!("{kind}.ready")), "")?;
    // Odd, so that it reaches every page of a number of pages that is a power of two.
    let step = if kind.starts_with("random") { 0x9e37_79b9 } else { 1 };
    let mut seen: u64 = 0;
    for pass in 0_u64.. {
        let (expected, next) = match kind.ends_with("writer") {
            true => (pass, pass + 1),
            false => (0, 0),
        };
        for turn in 0..count {
            let index = turn.wrapping_mul(step) % count;
            let page = black_box(&mut pages[index * WORDS..][..WORDS]);
            if page.iter().any(|found| *found != word(index, expected)) {
                let fault = format!("wrong: page {index} in pass {pass}\n");
                file.write_all_at(fault.as_bytes(), 0)?;
                return Err(fault.into());
            }
            if next != expected {
                page.fill(word(index, next));
            }
            seen += 1;
            if seen % 16 == 0 {
                file.write_all_at(format!("{seen:20}\n").as_bytes(), 0)?;
            }
        }
    }
    Ok(())
}

/// What every word of a page is.
fn word(index: usize, pass: u64) -> u64 {
    (index as u64 + 1) << 32 | pass
}
