//! Leaving a pipe to a reader that copies.
//!
//! A reader holds the pipe's mutex for as long as it copies, up to a megabyte at a time for lz4,
//! mbuffer and dd, and whoever splices into the pipe meanwhile, or only asks what is queued there,
//! spins for it. `poll` does not take the mutex; but it says that there is room as soon as the
//! reader has begun. So after that, and after the reader was given something, the pipe is left
//! alone for a while. How long is learned: a reader that splices is done at once, and one that
//! copies shows by keeping us waiting.

use std::thread;
use std::time::{Duration, Instant};

/// What is known of the reader of a pipe.
#[derive(Debug, Default)]
pub struct Rest {
    /// How long it has the mutex for each byte, in nanoseconds.
    pace: f64,
    /// How many bytes it was seen to begin with.
    bytes: u64,
    /// Whether it was not met since then.
    begun: bool,
    until: Option<Instant>,
}

impl Rest {
    /// Fewer bytes are copied before anybody is woken up, and teach nothing.
    const LEARNS_FROM: u64 = 64 << 10;
    /// The pace is never taken to be slower: on a busy machine, who waits has often not waited for
    /// the reader. At double of it a chunk of a megabyte waits for a millisecond there.
    const SLOWEST: f64 = 0.5;
    /// A call that waited for nobody takes less.
    const UNDISTURBED: Duration = Duration::from_micros(5);
    /// A rest is worth no sleep if it is shorter.
    const SHORTEST: Duration = Duration::from_micros(20);
    /// What the pace becomes after a call that was not disturbed: less, to find out whether less
    /// will do. At half of the step, a reader that has become faster is found out twice as late;
    /// at double, one call in three is disturbed.
    const TRY: f64 = 7.0 / 8.0;

    /// Notes that the reader has something to copy, of so many bytes.
    pub fn begin(&mut self, bytes: u64) {
        if bytes >= Rest::LEARNS_FROM {
            (self.bytes, self.begun) = (bytes, true);
            let rest = Duration::from_nanos((bytes as f64 * self.pace) as u64);
            self.until = (rest >= Rest::SHORTEST).then(|| Instant::now() + rest);
        }
    }

    /// Notes how much longer a call took that takes the mutex than it would have by itself.
    pub fn met(&mut self, waited: Duration) {
        if std::mem::take(&mut self.begun) {
            self.pace = if waited > Rest::UNDISTURBED {
                (self.pace + waited.as_nanos() as f64 / self.bytes as f64).min(Rest::SLOWEST)
            } else {
                self.pace * Rest::TRY
            };
        }
    }

    /// How long the pipe is still to be left alone.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Leaves the pipe alone for as long as that.
    pub fn sleep(&mut self) {
        if let Some(left) = self.left(Instant::now()) {
            thread::sleep(left);
        }
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(disturbances: impl IntoIterator<Item = u64>) -> Rest {
        let mut rest = Rest::default();
        for micros in disturbances {
            rest.begin(MIB);
            rest.met(Duration::from_micros(micros));
        }
        rest.begin(MIB);
        rest
    }

    #[test]
    fn a_reader_that_disturbs_nobody_is_not_waited_for() {
        assert_eq!(after([0; 100]).left(Instant::now()), None);
        assert_eq!(after([4, 5, 1]).left(Instant::now()), None);
    }

    #[test]
    fn a_reader_that_copies_is_left_alone_about_as_long_as_it_does() {
        let left = after([100]).left(Instant::now()).unwrap();
        assert!(left > Duration::from_micros(50) && left <= Duration::from_micros(100), "{left:?}");
        let longest = after([10_000; 10]).left(Instant::now()).unwrap();
        assert!(longest <= Duration::from_micros(525), "{longest:?}");
    }

    #[test]
    fn it_is_forgotten_when_it_copies_no_more() {
        let disturbances = std::iter::once(400).chain([0; 40]);
        assert_eq!(after(disturbances).left(Instant::now()), None);
    }

    #[test]
    fn a_few_bytes_teach_nothing() {
        let mut rest = Rest::default();
        rest.begin(4096);
        rest.met(Duration::from_millis(1));
        rest.begin(MIB);
        assert_eq!(rest.left(Instant::now()), None);
    }
}
