//! Amounts as messages have them. What tells a place in a stream is exact, and not of these.

use std::fmt;
use std::time::Duration;

/// An amount of bytes, in words: `1.2 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];

        if self.0 < 1000 {
            return write!(f, "{} bytes", self.0);
        }
        let mut amount = self.0 as f64 / 1000.0;
        let mut units = UNITS.iter();
        let mut unit = units.next().unwrap_or(&"");
        // What would be shown as 1000.0.
        while amount >= 999.95 {
            let Some(next) = units.next() else { break };
            amount /= 1000.0;
            unit = next;
        }
        write!(f, "{amount:.1} {unit}")
    }
}

/// So many bytes in such a time: `1.2 GB/s`.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub u64, pub Duration);

impl Rate {
    fn per_second(&self) -> Option<f64> {
        let seconds = self.1.as_secs_f64();
        (seconds > 0.0).then(|| self.0 as f64 / seconds)
    }

    /// How long as many bytes more take.
    pub fn time_for(&self, bytes: u64) -> Option<Duration> {
        let rate = self.per_second().filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64(bytes as f64 / rate).ok()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes(self.per_second().unwrap_or(0.0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_form() {
        let cases = [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (999_940, "999.9 kB"),
            (999_990, "1.0 MB"),
            (4_200_000_000, "4.2 GB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (bytes, words) in cases {
            assert_eq!(Bytes(bytes).to_string(), words);
        }
        assert_eq!(Rate(3_000_000, Duration::from_secs(2)).to_string(), "1.5 MB/s");
        assert_eq!(Rate(3_000_000, Duration::ZERO).to_string(), "0 bytes/s");
    }
}
