//! The small files, which CRIU writes into its images directory.
//!
//! Most of them are written before the memory is complete, but the last bytes only behind that;
//! and no word of CRIU's says when. So each file is followed from the moment in which it appears:
//! when all of them are closed and `inventory.img` is among them, CRIU has come to its action
//! script at `post-dump`, or to its end.

use crate::error::Error;
use cli::StreamOutput;
use criu_protocol::{CPUINFO, INVENTORY, inventory};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use pipe_io::Endpoint;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use wire_format::{FileName, ImageId};

/// The images directory.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    inotify: Inotify,
    /// Files that were made, and not closed since.
    unfinished: HashSet<OsString>,
    /// Whether `inventory.img` was closed.
    inventory: bool,
    /// Whether a file has appeared that CRIU makes when the processes are frozen.
    begun: bool,
}

/// In an images directory: the id of the image that its files belong to.
const ID: &str = "criu-page-capture.id";

/// In an images directory: the id of the increment that was begun on its image.
const NEXT: &str = "criu-page-capture.next";

/// In an images directory, by CRIU: a link to that of the dump before.
const PARENT: &str = "parent";

/// What runc writes beside CRIU's files, and `runc restore` needs.
const RUNC_DESCRIPTORS: &str = "descriptors.json";

impl Files {
    /// Follows the files that will appear in `directory`, which must have none of another image.
    pub(crate) fn watch(directory: PathBuf) -> Result<Files, Error> {
        let failed = |errno: Errno| Error::Path(directory.clone(), errno.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| Error::System(errno.into()))?;
        let events =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&directory, events).map_err(failed)?;
        let unfinished = HashSet::new();
        let files = Files { directory, inotify, unfinished, inventory: false, begun: false };
        match files.names()?.into_iter().find(is_criu_s) {
            Some(name) => Err(Error::Leftover(files.directory.join(name.as_str()))),
            None => Ok(files),
        }
    }

    /// Sees that the dump before, as CRIU knows it, is that of this image, and that no other
    /// increment of it was begun. With each dump the kernel forgets what had changed before, also
    /// if the dump has failed: on the image before that one nothing can be built any more.
    pub(crate) fn begin_increment(&self, of: ImageId, id: ImageId) -> Result<(), Error> {
        let before = self.directory.join(PARENT);
        let path = before.join(ID);
        let found = fs::read_to_string(&path).map_err(|error| Error::Path(path, error))?;
        if found.trim().parse() != Ok(of) {
            return Err(Error::OtherParent(before, of));
        }
        let path = before.join(NEXT);
        let mark = OpenOptions::new().write(true).create_new(true).open(&path);
        match mark.and_then(|mut mark| writeln!(mark, "{id}")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::Begun(before)),
            Err(error) => Err(Error::Path(path, error)),
        }
    }

    /// Notes which image the files belong to, which is complete.
    pub(crate) fn note_image(&self, id: ImageId) -> Result<(), Error> {
        let path = self.directory.join(ID);
        fs::write(&path, format!("{id}\n")).map_err(|error| Error::Path(path, error))
    }

    /// Takes note of what has happened in the directory.
    pub(crate) fn attend(&mut self) -> Result<(), Error> {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::Path(self.directory.clone(), errno.into())),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    return Err(Error::TooManyFiles(self.directory.clone()));
                }
                let Some(name) = event.name.filter(|name| name.as_encoded_bytes().ends_with(IMG))
                else {
                    continue;
                };
                if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
                    self.inventory |= name == INVENTORY;
                    self.unfinished.remove(&name);
                } else {
                    self.begun |= name != CPUINFO;
                    self.unfinished.insert(name);
                }
            }
        }
    }

    /// Whether CRIU has begun with those of frozen processes.
    pub(crate) fn have_begun(&self) -> bool {
        self.begun
    }

    /// Whether CRIU has written all of them.
    pub(crate) fn are_complete(&self) -> bool {
        self.inventory && self.unfinished.is_empty()
    }

    /// Puts the files into the stream, `inventory.img` last. None may have one of the names in
    /// `taken`.
    pub(crate) fn write_to(
        &self,
        output: &mut StreamOutput,
        taken: &HashSet<FileName>,
    ) -> Result<(), Error> {
        let mut names = self.names()?;
        names.retain(|name| is_criu_s(name) || name.as_str() == RUNC_DESCRIPTORS);
        if let Some(name) = names.iter().find(|name| taken.contains(*name)) {
            return Err(Error::NameClash(self.directory.join(name.as_str())));
        }
        names.sort_by_key(|name| name.as_str() == INVENTORY);
        if names.last().is_none_or(|name| name.as_str() != INVENTORY) {
            return Err(Error::DumpFailed);
        }
        names.iter().try_for_each(|name| self.write_file(name, output))
    }

    fn write_file(&self, name: &FileName, output: &mut StreamOutput) -> Result<(), Error> {
        /// What is read and written, and larger files are spliced.
        const SMALL: u64 = 64 << 10;

        let failed = |error| Error::file(&self.directory, name, error);
        let mut file = self.open(name).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        output.file(name)?;
        if length <= SMALL || name.as_str() == INVENTORY {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(failed)?;
            if name.as_str() == INVENTORY && !inventory::is_whole(&bytes) {
                return Err(Error::DumpFailed);
            }
            output.bytes(name, &bytes)?;
        } else {
            self.splice_file(name, file, length, output)?;
        }
        output.file_eof(name)?;
        Ok(())
    }

    fn splice_file(
        &self,
        name: &FileName,
        file: File,
        length: u64,
        output: &mut StreamOutput,
    ) -> Result<(), Error> {
        const PIECE: u64 = 1 << 30;

        let failed = |error| Error::file(&self.directory, name, error);
        let file =
            Endpoint::new(file.into()).map_err(|refusal| failed(io::Error::other(refusal)))?;
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE);
            output.data(name, piece as u32)?;
            output.payload(&file, piece as u32).map_err(|error| match error {
                cli::SourceError::Output(error) => Error::Output(error),
                cli::SourceError::Source(_, error) => {
                    failed(error.unwrap_or(io::ErrorKind::UnexpectedEof.into()))
                }
            })?;
            left -= piece;
        }
        Ok(())
    }

    /// No link that leads elsewhere, and nothing that is waited for.
    fn open(&self, name: &FileName) -> io::Result<File> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(self.directory.join(name.as_str()))
    }

    /// Of all regular files.
    fn names(&self) -> Result<Vec<FileName>, Error> {
        names(&self.directory).map_err(|error| Error::Path(self.directory.clone(), error))
    }
}

const IMG: &[u8] = b".img";

fn is_criu_s(name: &FileName) -> bool {
    name.as_str().as_bytes().ends_with(IMG)
}

fn names(directory: &Path) -> io::Result<Vec<FileName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A name that is no UTF-8 is none of CRIU's.
        let name = entry.file_name().to_str().and_then(|name| FileName::new(name).ok());
        names.extend(name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())));
    }
    names.sort();
    Ok(names)
}

impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
