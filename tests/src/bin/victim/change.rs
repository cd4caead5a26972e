//! `victim change DIR MEGABYTES` and `victim check DIR`
//!
//! Two processes whose memory changes by a rule: so what every page must be after so many steps
//! can be computed, without trusting memory that was there before.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Fault;

const PAGE: usize = 4096;

/// Pages that a step changes.
const CHANGED: u64 = 4;

/// How long both processes may take for a step.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the second process, and becomes the first, which `DIR/root` names.
pub(crate) fn run(directory: &str, megabytes: usize) -> Result<(), Fault> {
    let directory = Path::new(directory);
    let program = std::env::current_exe()?;
    let _second = Command::new(program)
        .args(["changer", &directory.to_string_lossy(), &megabytes.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    fs::write(directory.join("root.new"), id().to_string())?;
    fs::rename(directory.join("root.new"), directory.join("root"))?;
    change(directory, megabytes)
}

/// Steps for ever. After each, `DIR/PID` says which it was, and whether all pages were as they
/// should be.
pub(crate) fn change(directory: &Path, megabytes: usize) -> Result<(), Fault> {
    // Its length never changes: CRIU does not restore a file that has another one.
    let path = directory.join(id().to_string());
    let status = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let salt = u64::from(id());
    let pages = (megabytes << 20) / PAGE;
    let mut memory = vec![0; pages * PAGE];
    let mut expected = vec![0; pages];
    for page in 0..pages {
        write(&mut memory, page, salt, 0);
    }
    for step in 1_u64.. {
        for page in changed(step, pages) {
            write(&mut memory, page, salt, step);
        }
        expected.fill(0);
        (1..=step).for_each(|step| changed(step, pages).for_each(|page| expected[page] = step));
        let is_well = expected
            .iter()
            .enumerate()
            .all(|(page, step)| read(&memory, page) == [page as u64, salt, *step]);
        status.write_all_at(format!("{step:010} {}\n", u8::from(is_well)).as_bytes(), 0)?;
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The pages that a step changes.
fn changed(step: u64, pages: usize) -> impl Iterator<Item = usize> {
    (0..CHANGED).map(move |index| {
        let number = (step * CHANGED + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (number >> 20) as usize % pages
    })
}

/// Stamps a page at its begin, and with the same at its end.
fn write(memory: &mut [u8], page: usize, salt: u64, step: u64) {
    let stamp: Vec<u8> =
        [page as u64, salt, step].iter().flat_map(|number| number.to_le_bytes()).collect();
    let start = page * PAGE;
    memory[start..start + 24].copy_from_slice(&stamp);
    memory[start + PAGE - 24..start + PAGE].copy_from_slice(&stamp);
}

fn read(memory: &[u8], page: usize) -> [u64; 3] {
    let bytes = &memory[page * PAGE..(page + 1) * PAGE];
    let stamp = |at: usize| {
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes);
        [0, 8, 16].map(|offset| number(at + offset).unwrap_or(u64::MAX))
    };
    match stamp(0) == stamp(PAGE - 24) {
        true => stamp(0),
        false => [u64::MAX; 3],
    }
}

/// Waits until both have gone on, and prints the least of their steps. Fails if memory was wrong.
pub(crate) fn check(directory: &str) -> Result<(), Fault> {
    let directory = Path::new(directory);
    let until = Instant::now() + PATIENCE;
    let before = steps(directory)?;
    loop {
        let now = steps(directory)?;
        let have_gone_on = now.iter().zip(&before).all(|((_, now), (_, then))| *now > then + 3);
        if now.len() == 2 && before.len() == 2 && have_gone_on {
            println!("{}", now.iter().map(|(_, step)| *step).min().unwrap_or(0));
            return Ok(());
        }
        if before.len() < 2 && now.len() == 2 {
            return check(&directory.to_string_lossy());
        }
        if Instant::now() > until {
            return Err(format!("not both go on: {now:?}").into());
        }
        sleep(Duration::from_millis(20));
    }
}

fn steps(directory: &Path) -> Result<Vec<(PathBuf, u64)>, Fault> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_status = path.file_name().and_then(|name| name.to_str());
        if !is_status.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut words = text.split_whitespace();
        let (Some(step), Some(well)) = (words.next(), words.next()) else { continue };
        if well != "1" {
            return Err(format!("{}: memory is wrong at step {step}", path.display()).into());
        }
        steps.push((path, step.parse()?));
    }
    steps.sort();
    Ok(steps)
}
