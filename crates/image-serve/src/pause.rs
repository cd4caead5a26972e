//! Leaving a pipe alone while CRIU copies out of it.
//!
//! CRIU holds the pipe's mutex for as long as it copies, half a millisecond for a MiB of fresh
//! memory, and whoever splices into the pipe meanwhile spins. Whoever comes after the read has ended
//! finds CRIU asleep: it has already asked for more. So the best is to come shortly before the read
//! ends that began when there was room: nobody sleeps then, and little time is spent spinning. How
//! long a read takes is learned: it depends on the memory that CRIU fills, and on the machine.
//!
//! Only a splice from a pipe shows that. What comes from a file or from memory has no pauses, but
//! for those of a pipe that holds more than one read.

use pipe_io::pipe::{self, ONE_READ};
use std::time::{Duration, Instant};

/// The pauses of one pipe.
#[derive(Debug)]
pub(crate) struct Pause {
    shortest: Duration,
    longest: Duration,
    /// How long the next pause is.
    time: Duration,
    /// When the read began that this pause is to outlast.
    began: Option<Instant>,
    ends: Option<Instant>,
}

impl Pause {
    /// The longest pause, as a multiple of [`pipe::rest`]: 1.2 ms for a pipe of 1 MiB, which holds one
    /// read.
    const LONGEST: u32 = 8;
    /// The same where a pipe holds more, and is not to be found empty: 0.6 ms. Measured with a restore
    /// of 3 GiB by the real CRIU through pipes of 4 MiB, CPU time of `image-serve`: with this 0.49 s,
    /// with half of it 0.48 s, with twice as much 0.57 s. Through pipes of 1 MiB, 2, 4 and 8 times had
    /// 0.47, 0.35 and 0.36 s.
    const LONGEST_OF_MANY: u32 = 4;
    /// A shorter one is not worth a sleep.
    const SHORTEST: Duration = Duration::from_micros(20);

    /// For a pipe of this capacity, in bytes. A small one gets no pauses.
    pub(crate) fn new(capacity: usize) -> Pause {
        Pause {
            // Its reader is busy with what the pipe holds beyond one read.
            shortest: pipe::rest(capacity.saturating_sub(ONE_READ)),
            longest: match capacity > ONE_READ {
                true => pipe::rest(ONE_READ) * Pause::LONGEST_OF_MANY,
                false => pipe::rest(capacity) * Pause::LONGEST,
            },
            time: pipe::rest(capacity),
            began: None,
            ends: None,
        }
    }

    /// A read begins: the pipe is left alone for as long as it is thought to take.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.ends = (self.time >= Pause::SHORTEST).then(|| now + self.time);
    }

    /// The pipe is left alone for so long for another reason.
    pub(crate) fn begin_unlearned(&mut self, now: Instant, time: Duration) {
        self.ends = Some(now + time);
    }

    /// There is no reason any more to leave the pipe alone.
    pub(crate) fn stop(&mut self) {
        (self.began, self.ends) = (None, None);
    }

    /// How long it is still left alone.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.ends.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }

    /// The pipe is not left alone any more. Returns how late that is.
    pub(crate) fn end(&mut self) -> Duration {
        self.ends.take().map(|end| end.elapsed()).unwrap_or_default()
    }

    /// The pipe is full again, after a pause that ended `late`. If the reader was met while it was
    /// copying, it was done at `done`.
    pub(crate) fn learn(&mut self, done: Option<Instant>, late: Duration) {
        let began = self.began.take();
        let copied_for = began.zip(done).map(|(began, done)| done.saturating_duration_since(began));
        self.learn_from(copied_for, late);
    }

    /// `copied_for`: how long the read took, if it was still going on when we came.
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
    fn late_timers_shorten_the_pause() {
        let mut pause = Pause::new(MIB);
        pause.learn_from(Some(micros(500)), Duration::ZERO);
        let prompt = pause.time;
        pause.learn_from(Some(micros(500)), micros(100));
        assert_eq!(pause.time, prompt - micros(100));
        pause.learn_from(Some(micros(500)), micros(1000));
        assert_eq!(pause.time, Duration::ZERO);
    }

    #[test]
    fn a_reader_that_is_never_met_shortens_the_pause() {
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
