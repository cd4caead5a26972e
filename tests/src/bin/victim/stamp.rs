//! `victim stamp FILE MEGABYTES`

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use crate::Fault;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// What every page begins with: in the image of the memory it tells the pages
/// from others. Then follow the page's index and its generation.
const MARK: u64 = u64::from_le_bytes(*b"stamped!");

/// Stamps the pages with 1, then with 2, 3, … and writes the number to `file`
/// when all of them have it.
///
/// So at any moment at most two generations are in the memory, the newer one in
/// an unbroken prefix of it.
pub(crate) fn stamp(file: &str, megabytes: usize) -> Result<(), Fault> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
    let mut memory = vec![0; (megabytes << 20) / size_of::<u64>() + WORDS];
    let start = memory.as_ptr().align_offset(PAGE);
    let pages = &mut memory[start..][..(megabytes << 20) / size_of::<u64>()];
    for generation in 1_u64.. {
        for (index, page) in black_box(&mut *pages).chunks_exact_mut(WORDS).enumerate() {
            page[..3].copy_from_slice(&[MARK, index as u64, generation]);
            // In this order, as the compiler sees it.
            black_box(page);
        }
        file.write_all_at(format!("{generation:20}\n").as_bytes(), 0)?;
    }
    Ok(())
}
