//! Outputs that are complete before the program is.

use crate::Place;
use pipe_io::{Endpoint, Kind};
use std::io;
use std::thread::{self, JoinHandle};

/// Outputs that have all that they get, and whose readers may not have taken it yet. Each is
/// closed in a thread of its own, so that its reader sees the end as soon as it has the rest, and
/// nothing else waits for it.
#[derive(Debug, Default)]
pub struct Closing(Vec<(Place, JoinHandle<io::Result<()>>)>);

/// An output that could not be ended, or whose reader has gone without all of it.
#[derive(Debug)]
pub struct ClosingError(pub Place, pub io::Error);

impl Closing {
    /// Ends an output. What nobody reads from us, such as a file, is closed at once.
    pub fn add(&mut self, place: Place, output: Endpoint) -> Result<(), ClosingError> {
        /// It waits, and makes one system call after the other.
        const STACK: usize = 128 << 10;

        let started = match output.kind() {
            Kind::Pipe | Kind::Socket => {
                thread::Builder::new().stack_size(STACK).spawn(move || output.close())
            }
            Kind::File | Kind::Device => {
                return output.close().map_err(|error| ClosingError(place, error));
            }
        };
        let thread = started.map_err(|error| ClosingError(place.clone(), error))?;
        self.0.push((place, thread));
        Ok(())
    }

    /// Waits until the readers have all.
    pub fn finish(self) -> Result<(), ClosingError> {
        for (place, thread) in self.0 {
            // It does not panic.
            if let Ok(Err(error)) = thread.join() {
                return Err(ClosingError(place, error));
            }
        }
        Ok(())
    }
}
