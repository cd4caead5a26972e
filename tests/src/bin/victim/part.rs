//! `victim part FILE MEGABYTES`

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::Fault;

const PAGE: usize = 4096;

/// Of so many pages, one changes at once: 5 %.
const OF: usize = 20;

/// Has memory that does not compress. As often as `FILE.go` appears it changes one page of twenty
/// all over it, removes that file, and writes to FILE how often it has done so.
pub(crate) fn part(file: &str, megabytes: usize) -> Result<(), Fault> {
    let go = format!("{file}.go");
    let mut memory = vec![0_u64; (megabytes << 20) / size_of::<u64>()];
    let mut number = 1_u64;
    for word in &mut memory {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *word = number;
    }
    // In a line of one width: CRIU restores no file that has another size.
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
    for times in 0_usize.. {
        file.write_all_at(format!("{times:10}\n").as_bytes(), 0)?;
        while !Path::new(&go).exists() {
            sleep(Duration::from_millis(10));
        }
        for page in memory.chunks_mut(PAGE / size_of::<u64>()).skip(times % OF).step_by(OF) {
            page[times % page.len()] += 1;
        }
        std::fs::remove_file(&go)?;
    }
    Ok(())
}
