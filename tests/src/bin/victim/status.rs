//! A process's proof of life and of state: a small file that it rewrites.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file with one line, `pid=PID step=N passes=N` and, if the process found
/// its state damaged, `error=WHAT` up to the end of the line.
///
/// *step* counts the messages (or turns) that the process has handled, and
/// *passes* how many times it has found its whole heap to be what it should.
///
/// The line is padded to [`LINE`] bytes, so the file never changes its size:
/// CRIU refuses to restore a process whose open files have another size than
/// they had when it was dumped.
pub(crate) struct Status {
    file: File,
}

/// Bytes in a status file. `head.rs` has the shell write as many.
pub(crate) const LINE: usize = 160;

impl Status {
    pub(crate) fn create(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(format!("{name}.status"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        Ok(Status { file })
    }

    pub(crate) fn report(&self, step: u64, passes: u64) -> io::Result<()> {
        self.write(&format!("step={step} passes={passes}"))
    }

    /// Says that the state is damaged. The process should end after that, so
    /// that nothing writes over it.
    pub(crate) fn complain(&self, step: u64, fault: &dyn std::fmt::Display) -> io::Result<()> {
        self.write(&format!("step={step} passes=0 error={fault}"))
    }

    fn write(&self, what: &str) -> io::Result<()> {
        let line = format!("pid={} {what}", std::process::id()).replace('\n', " ");
        let mut line = line.into_bytes();
        line.resize(LINE - 1, b' ');
        line.push(b'\n');
        self.file.write_all_at(&line, 0)
    }
}
