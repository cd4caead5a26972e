//! Leaving a pipe to a reader that copies.
//!
//! A reader holds the pipe's mutex for as long as it copies, up to a megabyte at a time for lz4,
//! mbuffer and dd, and whoever splices into the pipe meanwhile, or only asks what is queued there,
//! spins for it. `poll` does not take the mutex; but it says that there is room as soon as the
//! reader has begun. So after that, and after the reader was given something, the pipe is left
//! alone for a while. How long is learned: a reader that splices is done at once, and one that
//! copies shows by keeping us waiting.

use crate::pipe::ONE_READ;
use nix::time::{ClockId, clock_gettime};
use std::thread;
use std::time::{Duration, Instant};

/// What is known of the reader of a pipe.
#[derive(Debug)]
pub struct Rest {
    /// A call that was kept waiting no longer than this, for each byte that the reader had, was not
    /// disturbed, in nanoseconds.
    tolerance: f64,
    /// Nor was one that was kept waiting no longer than this in all.
    undisturbed: Duration,
    /// The slowest pace that is assumed, in nanoseconds for a byte.
    slowest: f64,
    /// The pace is multiplied by this after a call that was not disturbed, to find out whether less
    /// will do.
    eased: f64,
    /// How long it has the mutex for each byte, in nanoseconds.
    pace: f64,
    /// How many bytes it was seen to begin with.
    bytes: u64,
    /// Whether it was not met since then.
    begun: bool,
    /// How many more times it is met without learning.
    unwatched: u32,
    /// How many calls in a row were not disturbed of those that were watched.
    quiet: u32,
    until: Option<Instant>,
}

impl Rest {
    /// Fewer bytes are copied before anybody is woken up, and teach nothing.
    const LEARNS_FROM: u64 = 64 << 10;
    /// Of a reader that need not be left alone, at most so many calls in a row are not watched: that
    /// takes two more calls to the system for each. As many as were watched before in vain.
    const UNWATCHED_MAX: u32 = 63;
    /// What a reader may have to copy, in bytes.
    const MUCH: f64 = 1e6;
    /// A rest is worth no sleep if it is shorter.
    const SHORTEST: Duration = Duration::from_micros(20);

    /// Where there are other pipes to go on with, a tenth of what copying takes.
    ///
    /// Where four readers share two cores, one that copies a megabyte is often interrupted. Measured
    /// with `BENCH_ONLY=capture-4-dd make bench` and 1 MiB pipes, CPU s/GB: with a pace of 0.6 at the
    /// slowest and 31/32 of it after a call that was not disturbed 0.101; with 0.3 0.117, with 1.2
    /// 0.099; with 15/16 0.114, with 63/64 0.103.
    pub fn of_one_of_many() -> Rest {
        /// A call that spins for nobody computes less, on a slow machine too.
        const UNDISTURBED: Duration = Duration::from_micros(5);

        Rest { slowest: 0.6, eased: 31.0 / 32.0, ..Rest::tolerating(1.0 / 50.0, UNDISTURBED) }
    }

    /// Where there is nothing else to do, a third: so much is it worth that the reader need not wait
    /// for us. One that reads 128 KiB at a time is not left alone then; otherwise it would get a
    /// tenth less.
    ///
    /// A pipe that holds more than one read (1 MiB) is never left alone: with 4 MiB that saved
    /// nothing, and a reader of a megabyte at a time got a quarter less out of it
    /// (`BENCH_ONLY=capture-1-dd make bench`).
    pub fn of_the_only_one(capacity: u64) -> Rest {
        /// As long as a reader holds the mutex that copies 128 KiB.
        const UNDISTURBED: Duration = Duration::from_micros(40);

        let tolerance = if capacity > ONE_READ as u64 { f64::INFINITY } else { 1.0 / 16.0 };
        Rest::tolerating(tolerance, UNDISTURBED)
    }

    fn tolerating(tolerance: f64, undisturbed: Duration) -> Rest {
        Rest {
            tolerance,
            undisturbed,
            slowest: 0.3,
            eased: 7.0 / 8.0,
            pace: 0.0,
            bytes: 0,
            begun: false,
            unwatched: 0,
            quiet: 0,
            until: None,
        }
    }

    /// Whether the reader need not be left alone, by what is known.
    pub fn is_needless(&self) -> bool {
        self.pace * Rest::MUCH < Rest::SHORTEST.as_nanos() as f64
    }

    /// Notes that the reader has something to copy, of so many bytes.
    pub fn begin(&mut self, bytes: u64) {
        if bytes >= Rest::LEARNS_FROM {
            (self.bytes, self.begun) = (bytes, true);
            self.until = self.time().map(|time| Instant::now() + time);
        }
    }

    /// How long the reader is left alone with what it has.
    fn time(&self) -> Option<Duration> {
        let time = Duration::from_nanos((self.bytes as f64 * self.pace) as u64);
        (time >= Rest::SHORTEST).then_some(time)
    }

    /// Makes a call that takes the mutex, and learns from how much it has computed beyond what is
    /// `usual` for its result. What counts is the time of the processor: who is kept waiting by a
    /// reader that does not run sleeps, and costs nothing.
    pub fn meet<T>(&mut self, call: impl FnOnce() -> T, usual: impl FnOnce(&T) -> Duration) -> T {
        if !std::mem::take(&mut self.begun) {
            return call();
        }
        if self.unwatched > 0 {
            self.unwatched -= 1;
            return call();
        }
        let start = computed();
        let result = call();
        let spent = computed().saturating_sub(start);
        self.learn(spent.saturating_sub(usual(&result)));
        result
    }

    fn learn(&mut self, spun: Duration) {
        let each = spun.as_nanos() as f64 / self.bytes.max(1) as f64;
        let is_disturbed = spun > self.undisturbed && each > self.tolerance;
        self.pace = match is_disturbed {
            // One that was interrupted for long tells little.
            true => (self.pace + each.min(self.slowest / 2.0)).min(self.slowest),
            false => self.pace * self.eased,
        };
        self.quiet = match is_disturbed {
            true => 0,
            false => (self.quiet * 2 + 1).min(Rest::UNWATCHED_MAX),
        };
        self.unwatched = if self.is_needless() { self.quiet } else { 0 };
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

/// How much this thread has computed so far.
fn computed() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(disturbances: impl IntoIterator<Item = u64>) -> Rest {
        let mut rest = Rest::of_one_of_many();
        for micros in disturbances {
            rest.begin(MIB);
            rest.learn(Duration::from_micros(micros));
        }
        rest.begin(MIB);
        rest
    }

    #[test]
    fn a_reader_that_disturbs_nobody_is_not_waited_for() {
        assert_eq!(after([0; 100]).time(), None);
        assert_eq!(after([4, 20, 1]).time(), None);
    }

    #[test]
    fn a_reader_that_copies_is_left_alone_about_as_long_as_it_does() {
        let left = after([100]).time().unwrap();
        assert!(left > Duration::from_micros(50) && left <= Duration::from_micros(100), "{left:?}");
        let longest = after([10_000; 10]).time().unwrap();
        assert!(longest <= Duration::from_micros(630), "{longest:?}");
    }

    #[test]
    fn it_is_forgotten_when_it_copies_no_more() {
        let disturbances = std::iter::once(400).chain([0; 120]);
        assert_eq!(after(disturbances).time(), None);
    }

    #[test]
    fn a_few_bytes_teach_nothing() {
        let mut rest = Rest::of_one_of_many();
        for _ in 0..100 {
            rest.begin(64 << 10);
            rest.learn(Duration::from_micros(4));
        }
        rest.begun = false;
        rest.begin(4096);
        rest.meet(|| compute_for(Duration::from_millis(1)), |()| Duration::ZERO);
        rest.begin(MIB);
        assert_eq!(rest.time(), None);
    }

    fn compute_for(time: Duration) {
        let start = computed();
        while computed() - start < time {}
    }

    #[test]
    fn what_a_call_computes_counts_and_not_what_it_sleeps() {
        let left = |call: fn()| {
            let mut rest = Rest::of_one_of_many();
            rest.begin(MIB);
            rest.meet(call, |()| Duration::ZERO);
            rest.begin(MIB);
            rest.time().unwrap_or_default()
        };
        let most = Duration::from_micros(250);
        assert!(left(|| compute_for(Duration::from_millis(1))) > most);
        assert!(left(|| thread::sleep(Duration::from_millis(5))) < most);
    }
}
