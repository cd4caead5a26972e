//! A run: settings, cases, rounds, contenders.

use crate::Error;
use crate::cases::{CASES, Case, Contender, Pipes, Work};
use crate::criu::{self, RealCriu};
use crate::machine::Machine;
use crate::memory::{Memory, PAGE};
use crate::options::{Options, output_directory};
use crate::results::{CaseResults, ContenderResults, Median, Results, Round, SettingResults};
use crate::{apart, cleanup, dump, pages, report, restore, setting};
use std::cell::Cell;
use std::fs;
use std::process::ExitCode;

/// What all cases share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) memory: Memory,
    /// Bytes a second through a bare pipe, the last time.
    pub(crate) bare_rate: Cell<Option<f64>>,
}

/// The whole run. Fails if a contender did.
pub(crate) fn run() -> Result<ExitCode, Error> {
    cleanup::install()?;
    let options = Options::from_environment()?;
    let settings = setting::to_measure(options.tuned)?;
    let mut results = Results {
        machine: Machine::here(),
        megabytes: options.megabytes,
        rounds: options.rounds,
        settings: Vec::new(),
    };
    report::print_machine(&results);
    let memory = Memory::new(options.megabytes * (1 << 20) / PAGE);
    let bench = Bench { options, memory, bare_rate: Cell::new(None) };
    for pipe_max_size in settings {
        let _held = setting::hold(pipe_max_size)?;
        report::print_setting(pipe_max_size);
        let is_first = results.settings.is_empty();
        let is_due = |case: &Case| is_first || !case.is_same_in_all_settings();
        bench.measure_all(&mut results, pipe_max_size, false, is_due)?;
    }
    let has_case = |case: &Case| case.is_waking_up() && bench.options.wants(case.name);
    if setting::can_turn_halt_poll_on() && CASES.iter().any(has_case) {
        let _held = setting::hold_halt_poll()?;
        report::print_halt_poll();
        let pipe_max_size = setting::pipe_max_size()?;
        bench.measure_all(&mut results, pipe_max_size, true, Case::is_waking_up)?;
    }
    let failed = report::print_failures(&results);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Bench {
    /// All cases that are wanted and due with a setting.
    fn measure_all(
        &self,
        results: &mut Results,
        pipe_max_size: usize,
        halt_poll: bool,
        is_due: impl Fn(&Case) -> bool,
    ) -> Result<(), Error> {
        results.settings.push(SettingResults { pipe_max_size, halt_poll, cases: Vec::new() });
        for case in CASES.iter().filter(|case| self.options.wants(case.name) && is_due(case)) {
            let measured = self.measure(case);
            report::print_case(&measured);
            if let Some(setting) = results.settings.last_mut() {
                setting.cases.push(measured);
            }
            // Whoever interrupts the run keeps what was measured so far.
            save(results)?;
        }
        Ok(())
    }

    /// Everybody does the work once a round, in turns, so that what else the machine does hits
    /// all of them.
    fn measure(&self, case: &Case) -> CaseResults {
        let mut results = CaseResults {
            name: case.name.into(),
            title: case.title.into(),
            contenders: Vec::new(),
            skipped: None,
        };
        let is_real = case.work.is_real();
        results.skipped = is_real.then(|| criu::obstacle(&self.options)).flatten();
        if results.skipped.is_some() {
            return results;
        }
        let contenders = self.options.contenders(&case.work);
        results.contenders =
            contenders.iter().map(|contender| entry(*contender, &case.work)).collect();
        match self.measure_rounds(case, is_real, &contenders, &mut results.contenders) {
            Ok(()) => {}
            Err(error) => results.skipped = Some(error.to_string()),
        }
        for contender in &mut results.contenders {
            contender.median = Median::of(&contender.rounds);
        }
        results
    }

    fn measure_rounds(
        &self,
        case: &Case,
        is_real: bool,
        contenders: &[Contender],
        entries: &mut [ContenderResults],
    ) -> Result<(), Error> {
        let mut real = None;
        for round in 0..self.options.rounds.min(case.work.rounds_max()) {
            // Every other round the other way round: none always follows the same one.
            let mut turns: Vec<usize> = (0..contenders.len()).collect();
            if round % 2 == 1 {
                turns.reverse();
            }
            for index in turns {
                if entries[index].failed.is_some() {
                    continue;
                }
                if is_real && real.is_none() {
                    real = Some(RealCriu::set_up(&self.options)?);
                }
                match self.run(case, &contenders[index], real.as_ref()) {
                    Ok(round) => entries[index].rounds.push(round),
                    Err(error) => {
                        entries[index].failed = Some(error.to_string());
                        // The process may be gone.
                        real = None;
                    }
                }
            }
        }
        Ok(())
    }

    fn run(
        &self,
        case: &Case,
        contender: &Contender,
        real: Option<&RealCriu<'_>>,
    ) -> Result<Round, Error> {
        match (&case.work, real) {
            _ if case.pipes == Pipes::Small => apart::run(self, case, contender),
            (Work::Dump(dump), _) => dump::run(self, dump, contender),
            (Work::Pages(take), _) => pages::run(self, *take, contender),
            (Work::Restore(restore), _) => restore::run(self, restore, contender),
            (work, Some(criu)) => criu.run(work, contender),
            (_, None) => Err("no CRIU".into()),
        }
    }
}

fn entry(contender: Contender, work: &Work) -> ContenderResults {
    ContenderResults {
        name: contender.name(work).into(),
        is_reference: contender.is_reference(),
        rounds: Vec::new(),
        median: None,
        failed: None,
    }
}

fn save(results: &Results) -> Result<(), Error> {
    let directory = output_directory();
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("results.json"), serde_json::to_string_pretty(results)? + "\n")?;
    Ok(())
}
