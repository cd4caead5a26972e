//! `victim count FILE`

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use crate::Fault;

/// Writes 1, 2, 3, … to the start of `file`, ten times a second.
///
/// The numbers are of one width: CRIU refuses to restore a process whose open
/// files have another size than they had when it was dumped.
pub(crate) fn count(file: &str) -> Result<(), Fault> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
    for number in 1_u64.. {
        file.write_all_at(format!("{number:10}\n").as_bytes(), 0)?;
        sleep(Duration::from_millis(100));
    }
    Ok(())
}
