//! Rounds in a process of their own, which is a user without privileges whose pipes are small.

use crate::Error;
use crate::cases::{CASES, Case, Contender, Work};
use crate::measure::Bench;
use crate::memory::{Memory, PAGE};
use crate::options::Options;
use crate::results::Round;
use crate::{cleanup, dump, pipes, restore};
use nix::unistd::Uid;
use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Small pipes are slow: with more memory nothing but the time would be different.
const MEGABYTES_MAX: usize = 128;

/// One round, in another process.
pub(crate) fn run(bench: &Bench, case: &Case, contender: &Contender) -> Result<Round, Error> {
    const NOBODY: u32 = 65534;

    let all = bench.options.contenders(&case.work);
    let index = all.iter().position(|one| one == contender).ok_or("takes no part in this case")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["round", case.name, &index.to_string()]).stderr(Stdio::inherit());
    command.env("BENCH_MB", bench.options.megabytes.min(MEGABYTES_MAX).to_string());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output()?;
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err(format!("the round apart: {}", output.status).into()),
    }
}

/// In that process: does the round, and prints what it was.
pub(crate) fn round(name: &str, index: &str) -> Result<ExitCode, Error> {
    cleanup::install()?;
    let options = Options::from_environment()?;
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    let contenders = options.contenders(&case.work);
    let contender = contenders.get(index.parse::<usize>()?).ok_or("no such contender")?;
    let memory = Memory::new(options.megabytes * (1 << 20) / PAGE);
    let bench = Bench { options, memory, bare_rate: Cell::new(None) };
    let _held = pipes::use_up()?;
    let round = match &case.work {
        Work::Dump(dump) => dump::run(&bench, dump, contender),
        Work::Restore(restore) => restore::run(&bench, restore, contender),
        _ => Err("not in small pipes".into()),
    }?;
    println!("{}", serde_json::to_string(&round)?);
    Ok(ExitCode::SUCCESS)
}
