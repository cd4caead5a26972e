//! Shards that are named by a path: files, FIFOs, devices and UNIX sockets.

use crate::{Cleanup, Descriptors, OpenError, Place, ShardEnd, UsageError, new_image_id};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::stat;
use pipe_io::{Endpoint, FileId};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;

/// A file that is being written under a temporary name, which goes when this is dropped or a
/// signal ends the program.
#[derive(Debug)]
pub struct OutputFile {
    temporary: PathBuf,
    target: PathBuf,
    cleanup: Cleanup,
}

impl OutputFile {
    /// Flushes what was written to the disk.
    pub fn sync(&self) -> io::Result<()> {
        // Any descriptor of the file will do.
        OpenOptions::new().write(true).open(&self.temporary)?.sync_all()
    }

    /// Gives the file its name; what had the name before is gone.
    pub fn publish(self) -> io::Result<Published> {
        fs::rename(&self.temporary, &self.target)?;
        self.cleanup.keep();
        Ok(Published(self.target))
    }
}

/// A file that has its name.
#[derive(Debug)]
pub struct Published(PathBuf);

impl Published {
    /// Flushes the name to the disk.
    pub fn sync(&self) -> io::Result<()> {
        File::open(folder(&self.0))?.sync_all()
    }
}

/// Where an operand for writing leads.
enum Target {
    /// A file, existing or not, to be replaced in the end.
    File(PathBuf),
    /// A UNIX socket, to be connected to.
    Socket,
    /// A FIFO or a device, to be written as it is.
    Special(PathBuf),
}

pub(crate) fn open_outputs(
    operands: Vec<(Place, PathBuf)>,
    descriptors: &mut Descriptors,
) -> Result<Vec<ShardEnd>, OpenError> {
    let mut targets = Vec::new();
    for (place, path) in operands {
        let target = target(&path).map_err(|error| OpenError::System(place.clone(), error))?;
        claim(&target, &place, descriptors)?;
        targets.push((place, path, target));
    }
    // Opening a FIFO blocks until its reader comes, and readers come in any order: so each is
    // opened in a thread. What does not block is opened first, so that its failure is told.
    let (send, opened) = channel();
    let (special, others): (Vec<_>, Vec<_>) = targets
        .into_iter()
        .enumerate()
        .partition(|(_, (_, _, target))| matches!(target, Target::Special(_)));
    let mut ends = Vec::new();
    for (index, (place, path, target)) in others {
        ends.push((index, open_output(place, &path, target)?));
    }
    let count = special.len();
    for (index, (place, path, target)) in special {
        let send = send.clone();
        // Nobody listens any more when another has failed.
        thread::spawn(move || drop(send.send((index, open_output(place, &path, target)))));
    }
    for (index, end) in opened.iter().take(count) {
        ends.push((index, end?));
    }
    ends.sort_by_key(|(index, _)| *index);
    Ok(ends.into_iter().map(|(_, end)| end).collect())
}

fn open_output(place: Place, path: &Path, target: Target) -> Result<ShardEnd, OpenError> {
    let (opened, file) = match target {
        Target::File(target) => match create(target) {
            Ok((opened, file)) => (Ok(opened.into()), Some(file)),
            Err(error) => (Err(error), None),
        },
        Target::Socket => (UnixStream::connect(path).map(OwnedFd::from), None),
        Target::Special(path) => {
            (OpenOptions::new().write(true).open(path).map(OwnedFd::from), None)
        }
    };
    shard(place, opened, file)
}

pub(crate) fn open_inputs(
    operands: Vec<(Place, PathBuf)>,
    descriptors: &mut Descriptors,
) -> Result<Vec<ShardEnd>, OpenError> {
    let open = |(place, path): (Place, PathBuf)| {
        let end = shard(place, open_input(&path), None)?;
        descriptors.claim_input(&end.endpoint, &end.place).map_err(OpenError::Usage)?;
        Ok(end)
    };
    operands.into_iter().map(open).collect()
}

/// A FIFO opens at once: its end is not taken for the end of the shard before a writer came.
fn open_input(path: &Path) -> io::Result<OwnedFd> {
    if fs::metadata(path)?.file_type().is_socket() {
        return UnixStream::connect(path).map(OwnedFd::from);
    }
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    // The open file is ours alone, and from here on we do wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file.into())
}

fn shard(
    place: Place,
    opened: io::Result<OwnedFd>,
    file: Option<OutputFile>,
) -> Result<ShardEnd, OpenError> {
    let fd = opened.map_err(|error| OpenError::System(place.clone(), error))?;
    match Endpoint::new(fd) {
        Ok(endpoint) => {
            endpoint.grow();
            Ok(ShardEnd { place, endpoint, file })
        }
        Err(refusal) => Err(OpenError::Usage(UsageError::Refused(place, refusal))),
    }
}

fn target(path: &Path) -> io::Result<Target> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(Target::Socket),
        // What a symbolic link leads to is replaced, and not the link.
        Ok(metadata) if metadata.is_file() => Ok(Target::File(path.canonicalize()?)),
        Ok(metadata) if metadata.is_dir() => Err(Errno::EISDIR.into()),
        // A pipe that a shell names, /dev/fd/63, leads to no path, and opens all the same.
        Ok(_) => Ok(Target::Special(path.canonicalize().unwrap_or_else(|_| path.to_owned()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
            Ok(Target::File(folder(path).canonicalize()?.join(name)))
        }
        Err(error) => Err(error),
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Notes what a target is. A socket is another one for each that connects to it.
fn claim(target: &Target, place: &Place, descriptors: &mut Descriptors) -> Result<(), OpenError> {
    let system = |error: io::Error| OpenError::System(place.clone(), error);
    let (Target::File(path) | Target::Special(path)) = target else { return Ok(()) };
    let claimed = match file_id(path) {
        Ok(Some(file)) => descriptors.claim_output(file, place),
        Ok(None) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = file_id(folder(path)).map_err(system)?;
            match (directory, path.file_name()) {
                (Some(directory), Some(name)) => {
                    descriptors.claim_new(directory, name.to_owned(), place)
                }
                // It is no directory, and to make a file there will fail.
                _ => Ok(()),
            }
        }
        Err(error) => return Err(system(error)),
    };
    claimed.map_err(OpenError::Usage)
}

fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    Ok(FileId::of_stat(&stat(path)?))
}

/// A new file beside the target, so that both are on one file system.
fn create(target: PathBuf) -> io::Result<(File, OutputFile)> {
    let permissions = permissions(&target)?;
    let mut name = OsString::from(".shard-");
    // Sixteen random bytes: no other program has this name, nor had it before.
    name.push(new_image_id()?.to_string());
    let temporary = target.with_file_name(name);
    let (file, cleanup) = Cleanup::of(|| {
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok::<_, io::Error>((file, temporary.clone()))
    })?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    Ok((file, OutputFile { temporary, target, cleanup }))
}

/// Those of the file that will be replaced, which must be one that we may write.
fn permissions(target: &Path) -> io::Result<Option<Permissions>> {
    match OpenOptions::new().write(true).open(target) {
        Ok(file) => Ok(Some(file.metadata()?.permissions())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
