//! What is told while a process is held: one line that is written over on a terminal, and
//! elsewhere a line every ten seconds. A reader that stalls or goes away changes nothing.

use pipe_io::Patient;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How a command speaks on standard error.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    program: &'static str,
    quiet: bool,
    verbose: bool,
}

impl Voice {
    /// The program of this name; quiet, it says only what went wrong.
    pub fn new(program: &'static str, quiet: bool, verbose: bool) -> Voice {
        Voice { program, quiet, verbose }
    }

    /// The program's name.
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// Says something.
    pub fn say(&self, message: impl fmt::Display) {
        self.write(&format!("{}: {message}\n", self.program));
    }

    /// Says something if more was asked for.
    pub fn note(&self, message: impl fmt::Display) {
        if self.verbose {
            self.say(message);
        }
    }

    /// Passes on a line of another program.
    pub fn pass_on(&self, line: &str) {
        self.write(&format!("{line}\n"));
    }

    /// Says the last line, when nothing is held any more: so it may wait for its reader.
    pub fn last(&self, message: impl fmt::Display) {
        let end_of_live = if self.is_live() { "\r\x1b[K" } else { "" };
        let line = format!("{end_of_live}{}: {message}\n", self.program);
        let _ = Patient(io::stderr()).write_all(line.as_bytes());
    }

    /// Says the last line when all went well, unless it is to be quiet.
    pub fn last_unless_quiet(&self, message: impl fmt::Display) {
        if !self.quiet {
            self.last(message);
        }
    }

    fn is_live(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Writes what the reader takes without waiting.
    fn write(&self, text: &str) {
        /// What a pipe takes as a whole, or not at all.
        const ATOMIC: usize = 4096;

        let text = if self.is_live() { format!("\r\x1b[K{text}") } else { text.to_owned() };
        for piece in text.as_bytes().chunks(ATOMIC) {
            // The command and CRIU write there too.
            if pipe_io::offer(io::stderr(), piece).is_err() {
                return;
            }
        }
    }
}

/// Writes a line for programs. That nobody reads it is no error.
pub(crate) fn print_line(to: &OwnedFd, line: &str) {
    let _ = Patient(to).write_all(format!("{line}\n").as_bytes());
}

/// Writes a line for programs that another will follow, if its reader takes it without waiting.
pub(crate) fn offer_line(to: &OwnedFd, line: &str) {
    let _ = pipe_io::offer(to, format!("{line}\n").as_bytes());
}

/// The line that tells how far things are.
#[derive(Debug)]
pub struct Live {
    voice: Voice,
    pause: Duration,
    last: Instant,
}

impl Live {
    /// Tells every second on a terminal, else every ten, and never if it is to be quiet.
    pub fn new(voice: Voice) -> Live {
        let pause = if voice.is_live() { 1 } else { 10 };
        Live { voice, pause: Duration::from_secs(pause), last: Instant::now() }
    }

    /// Whether it is time for the line.
    pub fn is_due(&self) -> bool {
        !self.voice.quiet && self.last.elapsed() >= self.pause
    }

    /// Makes it time for the line.
    pub fn hurry(&mut self) {
        self.last = Instant::now().checked_sub(self.pause).unwrap_or(self.last);
    }

    /// Shows the line.
    pub fn show(&mut self, line: impl fmt::Display) {
        self.last = Instant::now();
        if self.voice.is_live() {
            let text = format!("\r{}: {line}\x1b[K", self.voice.program);
            let _ = pipe_io::offer(io::stderr(), text.as_bytes());
        } else {
            self.voice.say(line);
        }
    }
}

/// A time in words: `1.234 s`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_form() {
        assert_eq!(Seconds(Duration::from_millis(12_034)).to_string(), "12.034 s");
    }
}
