//! What was measured, as `results.json` has it.

use crate::machine::Machine;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    /// MiB of memory in each dump and restore.
    pub(crate) megabytes: usize,
    pub(crate) rounds: usize,
    pub(crate) settings: Vec<SettingResults>,
}

/// What was measured with one kernel setting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SettingResults {
    /// Bytes.
    pub(crate) pipe_max_size: usize,
    /// With idle processors that wait for work as long as the kernel has them by default, on a
    /// machine where that was turned off.
    #[serde(default)]
    pub(crate) halt_poll: bool,
    pub(crate) cases: Vec<CaseResults>,
}

/// One row of contenders who did the same work.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseResults {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) contenders: Vec<ContenderResults>,
    /// Why nobody competed.
    pub(crate) skipped: Option<String>,
}

/// One contender's rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ContenderResults {
    pub(crate) name: String,
    /// It is one of the references, and not a streamer.
    pub(crate) is_reference: bool,
    pub(crate) rounds: Vec<Round>,
    pub(crate) median: Option<Median>,
    /// Why it has no (further) rounds.
    pub(crate) failed: Option<String>,
}

/// One contender's work, done once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) wall_seconds: f64,
    /// Bytes of the files in the image.
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    pub(crate) processes: Vec<ProcessCost>,
    /// Of an image that arrived meanwhile.
    #[serde(default)]
    pub(crate) arrived: Option<Arrived>,
}

/// How a restore went on while its image arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Arrived {
    /// From the image's last byte until the process was restored.
    pub(crate) seconds_after: f64,
    /// The most bytes that had come and that CRIU had not read: those in all pipes on the way and
    /// those in the memory of the filters.
    pub(crate) unread_bytes: u64,
}

/// What one process has cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessCost {
    pub(crate) name: String,
    /// It counts; CRIU itself doesn't.
    pub(crate) is_filter: bool,
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) context_switches: u64,
}

/// Medians over the rounds, each for itself. GB are 10⁹ bytes of the files in the image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Median {
    pub(crate) wall_seconds: f64,
    pub(crate) gb_per_second: f64,
    pub(crate) files_per_second: f64,
    /// Of the filters alone.
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_seconds_per_gb: f64,
    /// Of the filters alone, voluntary and not.
    pub(crate) context_switches: f64,
    /// Of each filter.
    pub(crate) peak_rss_bytes: Vec<(String, u64)>,
    #[serde(default)]
    pub(crate) arrived: Option<Arrived>,
}

impl Round {
    fn filters(&self) -> impl Iterator<Item = &ProcessCost> {
        self.processes.iter().filter(|process| process.is_filter)
    }

    fn cpu_seconds(&self) -> f64 {
        self.filters().map(|filter| filter.user_seconds + filter.system_seconds).sum()
    }

    fn gigabytes(&self) -> f64 {
        self.bytes as f64 / 1e9
    }
}

impl Median {
    /// `None` without rounds.
    pub(crate) fn of(rounds: &[Round]) -> Option<Median> {
        let first = rounds.first()?;
        let median = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
        let peaks = first.filters().enumerate().map(|(index, filter)| {
            let peak = |round: &Round| {
                round.filters().nth(index).map_or(0.0, |filter| filter.peak_rss_bytes as f64)
            };
            (filter.name.clone(), median(&peak) as u64)
        });
        Some(Median {
            wall_seconds: median(&|round| round.wall_seconds),
            gb_per_second: median(&|round| round.gigabytes() / round.wall_seconds),
            files_per_second: median(&|round| round.files as f64 / round.wall_seconds),
            cpu_seconds: median(&Round::cpu_seconds),
            cpu_seconds_per_gb: median(&|round| round.cpu_seconds() / round.gigabytes()),
            context_switches: median(&|round| {
                round.filters().map(|filter| filter.context_switches as f64).sum()
            }),
            peak_rss_bytes: peaks.collect(),
            arrived: Arrived::median(rounds),
        })
    }
}

impl Arrived {
    fn median(rounds: &[Round]) -> Option<Arrived> {
        let arrived: Vec<_> = rounds.iter().filter_map(|round| round.arrived.as_ref()).collect();
        (!arrived.is_empty()).then(|| Arrived {
            seconds_after: median(arrived.iter().map(|it| it.seconds_after).collect()),
            unread_bytes: median(arrived.iter().map(|it| it.unread_bytes as f64).collect()) as u64,
        })
    }
}

/// The middle one, or the mean of the two in the middle. `values` is not empty.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_round_does_not_move_the_median() {
        assert_eq!(median(vec![2.0, 100.0, 1.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
