//! Leaving a pipe alone while CRIU copies out of it.
//!
//! CRIU holds the pipe's mutex for as long as it copies, half a millisecond for a MiB of fresh
//! memory, and whoever splices into the pipe meanwhile spins. Who comes when it has ended finds that
//! it has asked for more, and sleeps. So the best is to come shortly before the end of the read that
//! has begun when there was room: nobody sleeps then, and little is spun. How long a read takes is
//! learned: it is up to the memory that CRIU fills, and to the machine.

use pipe_io::pipe;
use std::time::{Duration, Instant};

/// What CRIU reads at once, at most, in bytes.
pub(crate) const AT_ONCE: usize = 1 << 20;

/// The pauses of one pipe.
#[derive(Debug)]
pub(crate) struct Pause {
    shortest: Duration,
    longest: Duration,
    /// What the next one is to take.
    time: Duration,
    /// When a read has begun that is to be waited for.
    began: Option<Instant>,
    ends: Option<Instant>,
}

impl Pause {
    /// The longest one, in times of what is usual for a pipe of what is read at once: 0.6 ms for a
    /// MiB. Measured with a restore of 3 GiB by the real CRIU through pipes of 1 MiB, CPU time of
    /// `image-serve` and time until all was restored: with this 0.35 and 1.79 s, with half of it 0.47
    /// and 1.77 s, with twice as much 0.36 and 1.82 s; through pipes of 4 MiB 0.49, 0.48 and 0.57 s of
    /// CPU time.
    const LONGEST: u32 = 4;

    /// For a pipe of this capacity, in bytes. None is made for a small one.
    pub(crate) fn new(capacity: usize) -> Pause {
        Pause {
            // Its reader is busy with what the pipe holds beyond one read.
            shortest: pipe::rest(capacity.saturating_sub(AT_ONCE)),
            longest: pipe::rest(capacity.min(AT_ONCE)) * Pause::LONGEST,
            time: pipe::rest(capacity),
            began: None,
            ends: None,
        }
    }

    /// A read begins: the pipe is left alone for as long as it is thought to take.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.ends = (!self.time.is_zero()).then(|| now + self.time);
    }

    /// The pipe is left alone for so long for another reason.
    pub(crate) fn begin_unlearned(&mut self, now: Instant, time: Duration) {
        self.ends = Some(now + time);
    }

    /// How long it is still left alone.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.ends.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }

    /// The pipe is not left alone any more. Returns by how much that comes too late.
    pub(crate) fn end(&mut self) -> Duration {
        self.ends.take().map(|end| end.elapsed()).unwrap_or_default()
    }

    /// The pipe is full again, after a pause that ended `late`, and whoever filled it met the reader
    /// while it was copying, or did not.
    pub(crate) fn learn(&mut self, has_met: bool, late: Duration) {
        let copied_for = self.began.take().map(|began| began.elapsed());
        self.learn_from(copied_for.filter(|_| has_met), late);
    }

    /// From when a reader that was met was done.
    fn learn_from(&mut self, copied_for: Option<Duration>, late: Duration) {
        let time = match copied_for {
            // An eighth early, as timers are late. With a quarter, 4 % more CPU time.
            Some(time) => time.saturating_sub(time / 8 + late),
            None => self.time * 3 / 4,
        };
        self.time = match time > self.longest {
            // The reader was met in a later read than the first: an earlier one is aimed at.
            true => self.longest / 2,
            false => time,
        }
        .max(self.shortest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_pause_ends_shortly_before_the_read() {
        let mut pause = Pause::new(MIB);
        pause.learn_from(Some(micros(500)), Duration::ZERO);
        assert!(pause.time > micros(400) && pause.time < micros(480), "{pause:?}");
        pause.learn_from(Some(micros(40)), Duration::ZERO);
        assert!(pause.time > micros(20) && pause.time < micros(40), "{pause:?}");
    }

    #[test]
    fn it_begins_earlier_to_end_on_a_machine_that_is_late() {
        let mut pause = Pause::new(MIB);
        pause.learn_from(Some(micros(500)), Duration::ZERO);
        let prompt = pause.time;
        pause.learn_from(Some(micros(500)), micros(100));
        assert_eq!(pause.time, prompt - micros(100));
        pause.learn_from(Some(micros(500)), micros(1000));
        assert_eq!(pause.time, Duration::ZERO);
    }

    #[test]
    fn who_meets_nobody_comes_earlier() {
        let mut pause = Pause::new(MIB);
        pause.learn_from(Some(micros(500)), Duration::ZERO);
        for _ in 0..30 {
            pause.learn_from(None, Duration::ZERO);
        }
        assert!(pause.time < micros(1), "{pause:?}");
    }

    #[test]
    fn no_read_is_waited_for_too_long() {
        let mut pause = Pause::new(MIB);
        pause.learn_from(Some(Duration::from_secs(1)), Duration::ZERO);
        assert!(pause.time < Duration::from_millis(1), "{pause:?}");
    }

    #[test]
    fn a_pipe_of_four_reads_is_left_alone_in_any_case() {
        let mut pause = Pause::new(4 * MIB);
        for _ in 0..30 {
            pause.learn_from(None, Duration::ZERO);
        }
        assert_eq!(pause.time, pipe::rest(3 * MIB));
    }

    #[test]
    fn a_small_pipe_is_never_left_alone() {
        let mut pause = Pause::new(8 << 10);
        for copied_for in [None, Some(micros(3)), Some(micros(500))] {
            pause.learn_from(copied_for, Duration::ZERO);
            pause.begin(Instant::now());
            assert_eq!(pause.left(Instant::now()), Duration::ZERO);
        }
    }
}
