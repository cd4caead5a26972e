//! `victim hold FILE MEGABYTES [--tcp PORT]`

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use crate::Fault;

/// Between two generations.
const PAUSE: Duration = Duration::from_millis(2);

/// Memory whose words all have the same number: the generation. The next one is written word for
/// word, in order; so at any moment the words up to some place have it, and those behind have the
/// one before. All that there is to know is in the memory itself, which may be taken at any moment.
struct Memory(Vec<AtomicU64>);

impl Memory {
    fn new(megabytes: usize) -> Memory {
        let mut words = Vec::new();
        words.resize_with((megabytes << 20) / size_of::<u64>(), || AtomicU64::new(1));
        Memory(words)
    }

    /// Takes the words from a stream.
    fn fill(&self, mut source: impl Read) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        for part in self.0.chunks(buffer.len() / size_of::<u64>()) {
            let bytes = &mut buffer[..size_of_val(part)];
            source.read_exact(bytes)?;
            let words = bytes.chunks_exact(size_of::<u64>());
            for (word, bytes) in part.iter().zip(words) {
                word.store(u64::from_le_bytes(*bytes.first_chunk().expect("8")), Ordering::Release);
            }
        }
        Ok(())
    }

    /// Finds the generation, and writes the next one from where that was begun.
    fn next(&self) -> Result<u64, Fault> {
        let (newest, begun) = self.find()?;
        let (generation, rest) = match begun {
            0 => (newest + 1, &self.0[..]),
            begun => (newest, &self.0[begun..]),
        };
        for word in rest {
            // In this order: nothing is put behind a store that releases.
            word.store(generation, Ordering::Release);
        }
        Ok(generation)
    }

    /// The newest generation, and how many words have it; 0 if all have.
    fn find(&self) -> Result<(u64, usize), Fault> {
        let at = |index: usize| self.0[index].load(Ordering::Acquire);
        let newest = at(0);
        let begun = (0..self.0.len()).find(|index| at(*index) != newest).unwrap_or(0);
        for index in begun..self.0.len() {
            let expected = newest - u64::from(begun > 0);
            if at(index) != expected {
                let found = at(index);
                return Err(format!("word {index} is of {found} instead of {expected}").into());
            }
        }
        Ok((newest, begun))
    }
}

/// Changes its memory, finds all of it as it should be, and writes to `file` which generation it
/// has. It tells in `FILE.memory` where the memory is. What comes on its TCP connection goes back.
///
/// With `resume` the memory comes on standard input, and then a byte to begin.
pub(crate) fn hold(
    file: &str,
    megabytes: usize,
    resume: bool,
    tcp: Option<TcpStream>,
) -> Result<(), Fault> {
    let memory = Memory::new(megabytes);
    if resume {
        memory.fill(io::stdin())?;
        memory.find()?;
        io::stdout().write_all(b"y")?;
        io::stdout().flush()?;
        io::stdin().read_exact(&mut [0])?;
    }
    crate::leave_the_callers_session()?;
    let place = format!("{} {}", memory.0.as_ptr().addr(), size_of_val(&memory.0[..]));
    // All at once, for whoever reads it.
    fs::write(format!("{file}.new"), place)?;
    fs::rename(format!("{file}.new"), format!("{file}.memory"))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    let outcome = go_on(&memory, &file, tcp);
    if let Err(fault) = &outcome {
        write(&file, &format!("error: {fault}"))?;
    }
    outcome
}

fn go_on(memory: &Memory, file: &fs::File, tcp: Option<TcpStream>) -> Result<(), Fault> {
    tcp.iter().try_for_each(|tcp| tcp.set_nonblocking(true))?;
    loop {
        let generation = memory.next()?;
        write(file, &format!("{} {generation}", std::process::id()))?;
        tcp.iter().try_for_each(answer)?;
        sleep(PAUSE);
    }
}

/// Sends back what has come.
fn answer(mut tcp: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    match tcp.read(&mut buffer) {
        Ok(0) => Err(io::Error::other("the connection has ended")),
        Ok(read) => tcp.write_all(&buffer[..read]),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// In a line of one width, so that the file has one size: CRIU wants it so.
fn write(file: &fs::File, text: &str) -> io::Result<()> {
    file.write_all_at(format!("{text:79}\n").as_bytes(), 0)
}
