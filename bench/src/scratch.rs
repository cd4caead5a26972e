//! Directories for sockets and images, gone at the end.

use crate::cleanup::{self, Undo};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of our own.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// In the directory for temporary files.
    pub(crate) fn new(name: &str) -> io::Result<Scratch> {
        Scratch::within(&std::env::temp_dir(), name)
    }

    /// In a tmpfs, where files are memory.
    pub(crate) fn in_memory(name: &str) -> io::Result<Scratch> {
        Scratch::within(Path::new("/dev/shm"), name)
    }

    fn within(parent: &Path, name: &str) -> io::Result<Scratch> {
        static MADE: AtomicU32 = AtomicU32::new(0);

        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(format!("csu-bench.{process}.{number}.{name}"));
        fs::create_dir(&path)?;
        cleanup::later(Undo::Remove(path.clone()));
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::now(&Undo::Remove(self.0.clone()));
    }
}
