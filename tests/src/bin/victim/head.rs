//! `victim tree DIR`: starts the ring, and keeps the messages going round.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::Fault;
use crate::heap::Heap;
use crate::member::{Role, in_sequence};
use crate::status::{LINE, Status};

/// Messages under way in the ring and in the socket pair, so that a dump finds
/// some in the pipes.
const UNDER_WAY: u64 = 4;

/// The shell's place in the ring: it has no heap, but counts like the others.
const SHELL: &str = r#"
n=0
while read -r m; do
    n=$((n + 1))
    [ "$m" -eq "$n" ] || wrong=" error=the ring: message $m after $((n - 1))"
    printf '%-*s\n' "$2" "pid=$$ step=$n passes=0$wrong" 1<>"$1/shell.status"
    echo "$m"
done
"#;

/// The arguments of `victim tree`.
pub(crate) struct Tree {
    directory: PathBuf,
    processes: usize,
    megabytes: usize,
    tcp: bool,
    undumpable: bool,
}

impl Tree {
    pub(crate) fn parse(directory: &str, options: &[&str]) -> Option<Self> {
        let directory = directory.into();
        let mut tree =
            Tree { directory, processes: 4, megabytes: 300, tcp: true, undumpable: false };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match *option {
                "--processes" => tree.processes = options.next()?.parse().ok()?,
                "--megabytes" => tree.megabytes = options.next()?.parse().ok()?,
                "--no-tcp" => tree.tcp = false,
                "--undumpable" => tree.undumpable = true,
                _ => return None,
            }
        }
        (tree.processes >= 4).then_some(tree)
    }

    /// Until the ring breaks, for instance because a member ended.
    pub(crate) fn run(self) -> Result<(), Fault> {
        let directory = fs::canonicalize(&self.directory)?;
        let status = Status::create(&directory, "head")?;
        let mut step = 0;
        let outcome = Ring::start(&Tree { directory, ..self })
            .and_then(|mut ring| ring.turn_for_ever(&status, &mut step));
        if let Err(fault) = &outcome {
            status.complain(step, fault)?;
        }
        outcome
    }

    /// The heap of each process; the shell has none.
    fn megabytes_each(&self) -> usize {
        self.megabytes / (self.processes - 1)
    }

    /// The process at `index` in the ring; the head itself is at 0.
    fn command(&self, index: usize) -> Result<Command, Fault> {
        if index == 2 {
            let mut shell = Command::new("sh");
            shell.args(["-c", SHELL, "sh"]).arg(&self.directory).arg((LINE - 1).to_string());
            return Ok(shell);
        }
        let role = match index {
            1 if self.tcp => Role::ThreadsAndTcp,
            1 => Role::Threads,
            last if last + 1 == self.processes && self.undumpable => Role::Undumpable,
            _ => Role::Plain,
        };
        let mut member = Command::new(std::env::current_exe()?);
        member.arg("member").arg(&self.directory).arg(index.to_string());
        member.arg(self.megabytes_each().to_string()).arg(role.name());
        Ok(member)
    }
}

/// What the head of the ring holds.
struct Ring {
    heap: Heap,
    output: File,
    input: BufReader<File>,
    pair_output: UnixStream,
    pair_input: BufReader<UnixStream>,
    deleted: File,
    _members: Vec<Child>,
}

impl Ring {
    fn start(tree: &Tree) -> Result<Self, Fault> {
        let (pair, far_pair) = UnixStream::pair()?;
        let mut far_pair = Some(OwnedFd::from(far_pair));
        let (mut last, output) = pipe2(OFlag::O_CLOEXEC)?;
        let mut members = Vec::new();
        for index in 1..tree.processes {
            let (next, member_output) = pipe2(OFlag::O_CLOEXEC)?;
            // The first member is the one with threads.
            let pair_or_null = far_pair.take().map_or_else(Stdio::null, Stdio::from);
            let mut command = tree.command(index)?;
            command.stdin(last).stdout(member_output).stderr(pair_or_null);
            members.push(command.spawn()?);
            last = next;
        }
        Ok(Ring {
            heap: Heap::new(tree.megabytes_each()),
            output: File::from(output),
            input: BufReader::new(File::from(last)),
            pair_output: pair.try_clone()?,
            pair_input: BufReader::new(pair),
            deleted: deleted_file(tree)?,
            _members: members,
        })
    }

    fn turn_for_ever(&mut self, status: &Status, step: &mut u64) -> Result<(), Fault> {
        for number in 1..=UNDER_WAY {
            self.send(number)?;
        }
        loop {
            let last = *step;
            *step = receive("the ring", &mut self.input, last)?;
            receive("the socket pair", &mut self.pair_input, last)?;
            self.heap.turn()?;
            self.rewrite_deleted_file(last)?;
            status.report(*step, self.heap.passes())?;
            self.send(*step + UNDER_WAY)?;
            sleep(Duration::from_millis(20));
        }
    }

    fn send(&mut self, number: u64) -> Result<(), Fault> {
        writeln!(self.output, "{number}")?;
        writeln!(self.pair_output, "{number}")?;
        Ok(())
    }

    /// Finds the number of the last step in the deleted file, puts in the next.
    fn rewrite_deleted_file(&self, last: u64) -> Result<(), Fault> {
        let mut found = [0; 20];
        self.deleted.read_exact_at(&mut found, 0)?;
        if found != deleted_content(last) {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(format!("the deleted file: {found:?} after {last}").into());
        }
        self.deleted.write_all_at(&deleted_content(last + 1), 0)?;
        Ok(())
    }
}

fn receive(place: &str, input: &mut impl BufRead, last: u64) -> Result<u64, Fault> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    in_sequence(place, &line, last)
}

fn deleted_file(tree: &Tree) -> Result<File, Fault> {
    let path = tree.directory.join("deleted");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    file.write_all_at(&deleted_content(0), 0)?;
    fs::remove_file(path)?;
    Ok(file)
}

fn deleted_content(step: u64) -> [u8; 20] {
    let mut content = [b' '; 20];
    let _ = write!(content.as_mut_slice(), "{step:20}");
    content
}
