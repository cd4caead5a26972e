//! How much went where, and how long it took.

use serde::Serialize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wire_format::ImageId;

/// Bytes and times of each shard, or of the one stream of a program without shards.
///
/// The program counts, and its signal thread reads at any moment.
#[derive(Debug)]
pub struct Counters {
    /// When the first byte was counted.
    start: OnceLock<Instant>,
    reports_blocked: bool,
    image_id: OnceLock<ImageId>,
    shards: Box<[ShardCounter]>,
}

#[derive(Debug, Default)]
struct ShardCounter {
    bytes: AtomicU64,
    /// Milliseconds from `start`, plus one; 0 while the shard goes on.
    ended: AtomicU64,
    /// Microseconds.
    blocked: AtomicU64,
}

#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    shards: Vec<ShardReport>,
}

#[derive(Serialize)]
struct ShardReport {
    size: u64,
    transfer_duration_millis: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_millis: Option<u64>,
}

impl Counters {
    /// For that many shards.
    pub fn new(shards: usize) -> Counters {
        Counters {
            start: OnceLock::new(),
            reports_blocked: false,
            image_id: OnceLock::new(),
            shards: std::iter::repeat_with(ShardCounter::default).take(shards).collect(),
        }
    }

    /// The same for a program that also tells how long each shard kept it waiting.
    pub fn with_blocked(shards: usize) -> Counters {
        Counters { reports_blocked: true, ..Counters::new(shards) }
    }

    /// Has the id of the image reported, too.
    pub fn identify(&self, image_id: ImageId) {
        let _ = self.image_id.set(image_id);
    }

    /// Counts bytes that went into or came out of a shard.
    pub fn add(&self, shard: usize, bytes: u64) {
        self.start.get_or_init(Instant::now);
        if let Some(counter) = self.shards.get(shard) {
            counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Notes that a shard kept the program waiting for so long.
    pub fn blocked(&self, shard: usize, time: Duration) {
        if let Some(counter) = self.shards.get(shard) {
            counter.blocked.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// Notes that a shard is complete.
    pub fn end(&self, shard: usize) {
        if let Some(counter) = self.shards.get(shard) {
            counter.ended.store(self.elapsed_millis() + 1, Ordering::Relaxed);
        }
    }

    /// All bytes that were counted.
    pub fn total(&self) -> u64 {
        self.shards.iter().map(|counter| counter.bytes.load(Ordering::Relaxed)).sum()
    }

    /// `{"shards":[{"size":BYTES,"transfer_duration_millis":MS},…]}`, and `"blocked_millis":MS` in
    /// each where that is counted; `"image_id":"HEX"` before them where it is known.
    pub fn json(&self) -> String {
        let now = self.elapsed_millis();
        let shards = self.shards.iter().map(|counter| ShardReport {
            size: counter.bytes.load(Ordering::Relaxed),
            transfer_duration_millis: match counter.ended.load(Ordering::Relaxed) {
                0 => now,
                ended => ended - 1,
            },
            blocked_millis: self
                .reports_blocked
                .then(|| counter.blocked.load(Ordering::Relaxed) / 1000),
        });
        let image_id = self.image_id.get().map(ImageId::to_string);
        let report = Report { image_id, shards: shards.collect() };
        // Numbers and a text in a struct: this has no way to fail.
        serde_json::to_string(&report).unwrap_or_default()
    }

    fn elapsed_millis(&self) -> u64 {
        self.start.get().map_or(0, |start| start.elapsed().as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_a_row_a_shard() {
        let counters = Counters::new(2);
        counters.add(1, 5_000_000_000);
        counters.end(0);
        counters.end(1);
        let report: serde_json::Value = serde_json::from_str(&counters.json()).unwrap();
        assert_eq!(report["shards"][0]["size"], 0);
        assert_eq!(report["shards"][1]["size"], 5_000_000_000_u64);
        assert!(report["shards"][1]["transfer_duration_millis"].is_u64());
    }
}
