//! Dumps through CRIU's page server, by the stand-in for CRIU.

use crate::Error;
use crate::cases::Contender;
use crate::image::Shape;
use crate::measure::Bench;
use crate::memory::PAGE;
use crate::pipes::{grown_pipe, vmsplice_all};
use crate::process::{Group, Program};
use crate::reader::{Take, drain};
use crate::results::{ProcessCost, Round};
use crate::scratch::Scratch;
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

/// What CRIU sends at once: a pipe full.
const RUN: usize = 256;

/// One contender's dump. The clock runs from before the first command until the last reader has
/// seen the end and all programs have ended.
pub(crate) fn run(bench: &Bench, take: Take, contender: &Contender) -> Result<Round, Error> {
    match contender {
        Contender::Bare => bare(bench, take),
        Contender::Filters => filter(bench, take),
        _ => Err("takes no part in this case".into()),
    }
}

/// The kernel's limit: one splice from the socket to the reader's pipe.
fn bare(bench: &Bench, take: Take) -> Result<Round, Error> {
    let (criu, ours) = UnixStream::pair()?;
    let (read, write) = grown_pipe()?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || drain(read, take));
        let mover = scope.spawn(move || splice_all(&ours, &write));
        let start = Instant::now();
        send_pages(bench, &criu)?;
        drop(criu);
        mover.join().map_err(|_| "the mover panicked")??;
        reader.join().map_err(|_| "the reader panicked")??;
        Ok(round(bench, start, Vec::new()))
    })
}

fn splice_all(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    const AT_ONCE: usize = 4 << 20;

    loop {
        match splice(from.as_fd(), None, to.as_fd(), None, AT_ONCE, SpliceFFlags::empty()) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn filter(bench: &Bench, take: Take) -> Result<Round, Error> {
    let scratch = Scratch::new("pages")?;
    let images = scratch.path().join("images");
    fs::create_dir(&images)?;
    let socket = scratch.path().join("pages.sock");
    let (read, write) = grown_pipe()?;
    let (progress, report) = crate::pipes::pipe()?;
    let capture = Program::filter("criu-page-capture")?
        .arg("-D")
        .arg(&images)
        .arg("--socket")
        .arg(&socket)
        .fds("-p", vec![report])
        .stdout(write);
    thread::scope(|scope| {
        let reader = scope.spawn(move || drain(read, take));
        let programs = Group::start(vec![capture])?;
        await_socket(progress)?;
        let mut criu = UnixStream::connect(&socket)?;
        let start = Instant::now();
        // A task, whose memory it is.
        criu.write_all(&command(4, 0, 0))?;
        criu.read_exact(&mut [0])?;
        send_pages(bench, &criu)?;
        fs::write(images.join("inventory.img"), [7; 60])?;
        criu.write_all(&command(0x1023, 0, 0))?;
        criu.read_exact(&mut [0; 4])?;
        drop(criu);
        let processes = programs.finish()?;
        let taken = reader.join().map_err(|_| "the reader panicked")??;
        let round = round(bench, start, processes);
        match taken >= round.bytes {
            true => Ok(round),
            false => Err(format!("only {taken} of {} bytes came out", round.bytes).into()),
        }
    })
}

fn await_socket(progress: OwnedFd) -> Result<(), Error> {
    let mut lines = BufReader::new(File::from(progress)).lines();
    match lines.next() {
        Some(Ok(line)) if line == "socket-init" => Ok(()),
        _ => Err("ended before its socket was there".into()),
    }
}

/// A command of the page server, in the layout of CRIU 4.2.
fn command(number: u32, pages: usize, start: usize) -> Vec<u8> {
    const TASK: u64 = 1 << 8 | 1;

    let mut bytes = u64::from(number).to_le_bytes().to_vec();
    let fields = [pages as u64, start as u64, TASK];
    fields.iter().for_each(|field| bytes.extend(field.to_le_bytes()));
    bytes
}

/// All memory, run by run, as CRIU does it: by `vmsplice` into a pipe, and from there by `splice`.
fn send_pages(bench: &Bench, socket: &UnixStream) -> io::Result<()> {
    const ADD_PRESENT: u32 = 6 | 4 << 16;

    let (read, write) = grown_pipe()?;
    let pages = bench.memory.pages();
    for start in (0..pages).step_by(RUN) {
        let end = pages.min(start + RUN);
        let mut to = socket;
        to.write_all(&command(ADD_PRESENT, end - start, start * PAGE))?;
        let mut bytes = bench.memory.bytes(start..end);
        while !bytes.is_empty() {
            // No more than the pipe takes at once.
            let (now, later) = bytes.split_at(bytes.len().min(64 * PAGE));
            vmsplice_all(&write, now)?;
            let mut left = now.len();
            while left > 0 {
                match splice(&read, None, socket, None, left, SpliceFFlags::SPLICE_F_MOVE) {
                    Ok(moved) => left -= moved,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            bytes = later;
        }
    }
    Ok(())
}

fn round(bench: &Bench, start: Instant, processes: Vec<ProcessCost>) -> Round {
    let image = Shape::Process.image(&bench.memory);
    let bytes = image.pages.iter().map(|file| file.range.len() * PAGE).sum::<usize>() as u64;
    Round { wall_seconds: start.elapsed().as_secs_f64(), bytes, files: 0, processes, arrived: None }
}
