//! Reading from a pipe whose writer copies into it.

use crate::pipe::{self, Pipe, page};
use crate::{Endpoint, Kind, poll, splice};
use std::io::{self, Read};
use std::thread;

/// An input that is read a little at a time.
///
/// A program that writes into a pipe holds the pipe's mutex while it copies, and whoever reads
/// spins until it has done with its piece. So all that is queued is moved to a pipe of our own,
/// and what is taken from there meets nobody.
#[derive(Debug)]
pub struct Intake {
    source: Endpoint,
    stage: Option<Stage>,
}

#[derive(Debug)]
struct Stage {
    read: Endpoint,
    write: Endpoint,
    capacity: usize,
    /// Bytes that are in it.
    queued: usize,
    /// How many bytes came at once when the source was last emptied.
    last: usize,
}

/// A pipe of less is emptied in so many gulps that it costs more than it saves. Past
/// `pipe-user-pages-soft` new ones have 8 KiB: with them an image was taken in at 1.4 GB/s, and at
/// 2.5 GB/s without.
const LEAST: usize = 64 << 10;

impl Intake {
    /// Takes from the source itself.
    pub fn direct(source: Endpoint) -> Intake {
        Intake { source, stage: None }
    }

    /// Takes from the source by way of a pipe, if it is one.
    pub fn staged(source: Endpoint) -> Intake {
        let stage = if source.kind() == Kind::Pipe { Stage::new() } else { None };
        Intake { source, stage }
    }

    /// What it all comes from.
    pub fn source(&self) -> &Endpoint {
        &self.source
    }

    /// Waits until there is something to take, and returns how many bytes at most; 0 at the end of
    /// the input.
    pub fn await_some(&mut self, most: u64) -> io::Result<u64> {
        let Some(stage) = &mut self.stage else { return Ok(most) };
        if stage.queued == 0 {
            stage.fill(&self.source)?;
        }
        Ok(most.min(stage.queued as u64))
    }

    /// Where it is to be taken from.
    pub fn outlet(&self) -> &Endpoint {
        self.stage.as_ref().map_or(&self.source, |stage| &stage.read)
    }

    /// Notes that bytes were taken from there.
    pub fn took(&mut self, bytes: usize) {
        if let Some(stage) = &mut self.stage {
            stage.queued = stage.queued.saturating_sub(bytes);
        }
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.await_some(buffer.len() as u64)?;
        let read = match buffer.get_mut(..most as usize) {
            Some(window) if !window.is_empty() => self.outlet().read(window)?,
            _ => 0,
        };
        self.took(read);
        Ok(read)
    }
}

impl Stage {
    /// `None` where there is no pipe to be had that is worth it: then it goes without.
    fn new() -> Option<Stage> {
        let Pipe { read, write } = Pipe::new().ok()?;
        let capacity = pipe::grow(&write, pipe::WANTED).ok()?;
        if capacity < LEAST {
            return None;
        }
        let (read, write) = (Endpoint::new(read).ok()?, Endpoint::new(write).ok()?);
        Some(Stage { read, write, capacity, queued: 0, last: 0 })
    }

    /// Moves all that the source has, which may be nothing at its end.
    fn fill(&mut self, source: &Endpoint) -> io::Result<()> {
        loop {
            poll::wait_readable(source)?;
            // A writer of single bytes may wait for us; one that had filled the pipe is waiting.
            if (page()..self.capacity / 2).contains(&self.last) {
                thread::sleep(pipe::rest(self.capacity));
            }
            match splice::splice_now(source, &self.write, self.capacity) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                moved => {
                    self.queued = moved?;
                    self.last = self.queued;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::thread::JoinHandle;

    const BYTES: usize = 3 << 20;

    fn byte(position: usize) -> u8 {
        ((position * position) >> 7) as u8
    }

    /// A pipe that a thread writes, in pieces of these sizes in turn.
    fn written(sizes: &'static [usize]) -> (OwnedFd, JoinHandle<()>) {
        let Pipe { read, write } = Pipe::new().unwrap();
        let mut write = File::from(write);
        let writer = thread::spawn(move || {
            let mut position = 0;
            for size in sizes.iter().cycle() {
                let end = (position + size).min(BYTES);
                write.write_all(&(position..end).map(byte).collect::<Vec<_>>()).unwrap();
                position = end;
                if position == BYTES {
                    return;
                }
            }
        });
        (read, writer)
    }

    #[test]
    fn what_is_written_is_taken_in_order_and_then_the_end() {
        for sizes in [&[1 << 20][..], &[4096], &[4095, 1, 70_000, 3], &[100_000, 7]] {
            for nonblocking in [false, true] {
                let (read, writer) = written(sizes);
                let source = Endpoint::new(read).unwrap();
                if nonblocking {
                    source.set_nonblocking().unwrap();
                }
                let mut intake = Intake::staged(source);
                let mut taken = Vec::new();
                let mut buffer = vec![0; 5000];
                for length in [4, 5000, 1, 4096].into_iter().cycle() {
                    match intake.read(&mut buffer[..length]).unwrap() {
                        0 => break,
                        read => taken.extend_from_slice(&buffer[..read]),
                    }
                }
                writer.join().unwrap();
                assert_eq!(taken.len(), BYTES, "{sizes:?}");
                assert!(taken.iter().enumerate().all(|(at, taken)| *taken == byte(at)));
                assert_eq!(intake.read(&mut buffer).unwrap(), 0);
            }
        }
    }

    #[test]
    fn what_another_reader_takes_is_not_waited_for_in_vain() {
        let Pipe { read, write } = Pipe::new().unwrap();
        let thief = File::from(read.try_clone().unwrap());
        let mut write = File::from(write);
        let theft =
            thread::spawn(move || io::copy(&mut (&thief).take(100_000), &mut io::sink()).unwrap());
        let writer = thread::spawn(move || {
            (0..2000).for_each(|_| write.write_all(&[7; 1000]).unwrap());
        });
        let mut intake = Intake::staged(Endpoint::new(read).unwrap());
        let mut taken = Vec::new();
        intake.read_to_end(&mut taken).unwrap();
        writer.join().unwrap();
        assert_eq!(taken.len() as u64 + theft.join().unwrap(), 2_000_000);
    }
}
