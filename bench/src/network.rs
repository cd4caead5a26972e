//! An image that arrives: bytes come at a rate, and it shows how many were not yet read by CRIU.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What brings all shards of an image together.
#[derive(Debug)]
pub(crate) struct Network {
    /// Bytes a second, of all shards together.
    rate: u64,
    start: Instant,
    /// How many bytes are on their way or have come.
    sent: AtomicU64,
    /// How many have come.
    come: AtomicU64,
    is_done: AtomicBool,
}

impl Network {
    /// One that begins now.
    pub(crate) fn new(rate: u64) -> Network {
        Network {
            rate,
            start: Instant::now(),
            sent: AtomicU64::new(0),
            come: AtomicU64::new(0),
            is_done: AtomicBool::new(false),
        }
    }

    /// Brings a shard, and returns when its last byte was there. Each of those that come at a time
    /// gets its share.
    pub(crate) fn bring(&self, mut shard: File, mut to: File) -> io::Result<Instant> {
        /// What comes at once: half a millisecond's worth.
        const PIECE: usize = 256 << 10;

        let mut buffer = vec![0; PIECE];
        loop {
            let read = shard.read(&mut buffer)?;
            if read == 0 {
                return Ok(Instant::now());
            }
            let sent = self.sent.fetch_add(read as u64, Ordering::Relaxed) + read as u64;
            let due = Duration::from_secs_f64(sent as f64 / self.rate as f64);
            thread::sleep(due.saturating_sub(self.start.elapsed()));
            match to.write_all(&buffer[..read]) {
                // Nobody has to read behind the end of the image.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Instant::now()),
                written => written?,
            }
            self.come.fetch_add(read as u64, Ordering::Relaxed);
        }
    }

    /// Returns the most bytes that have come and that these processes, which may not be there yet,
    /// have not read, at any time until [`Network::done`].
    pub(crate) fn watch(&self, readers: [i32; 2]) -> u64 {
        /// At 500 MB/s, 2.5 MB come meanwhile.
        const INTERVAL: Duration = Duration::from_millis(5);

        let mut most = 0;
        while !self.is_done.load(Ordering::Relaxed) {
            let read = readers.into_iter().filter_map(read_by).sum();
            most = self.come.load(Ordering::Relaxed).saturating_sub(read).max(most);
            thread::sleep(INTERVAL);
        }
        most
    }

    /// CRIU has ended.
    pub(crate) fn done(&self) {
        self.is_done.store(true, Ordering::Relaxed);
    }
}

/// How many bytes a process has read so far, if it runs.
fn read_by(pid: i32) -> Option<u64> {
    let counters = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    counters.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}
