//! The images directory, which gets all files of an image or none.
//!
//! Files are written in a directory of our own inside it, which nobody else can have put
//! anything into, and moved to their names when the image is complete. `inventory.img`, without
//! which nothing can be restored, goes first and comes last: whenever it is there, so is all of
//! the image that it belongs to.

use crate::error::Error;
use crate::permissions::Permissions;
use cli::{Cleanup, Descriptors};
use criu_protocol::{Direction, INVENTORY};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use pipe_io::{Endpoint, FileId, Kind};
use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use wire_format::FileName;

/// An images directory that an image is on its way into.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    /// The directory of our own.
    unfinished: OwnedFd,
    _cleanup: Cleanup,
    names: HashSet<FileName>,
    permissions: Permissions,
    sync: bool,
    /// What the program reads and writes besides, of which nothing must be replaced.
    used: Descriptors,
}

impl Directory {
    /// Begins to fill the directory. With `sync` the files are on the disk once they have their
    /// names, and would be there after a crash of the system. No file may replace one of `used`.
    pub(crate) fn open(
        path: PathBuf,
        permissions: Permissions,
        sync: bool,
        used: Descriptors,
    ) -> Result<Directory, Error> {
        let failed = |error: Errno| Error::Path(path.clone(), error.into());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&path, flags | OFlag::O_RDONLY, Mode::empty()).map_err(failed)?;
        let random = cli::new_image_id().map_err(Error::System)?;
        let name = format!(".image-extract.{random}");
        let make = || mkdirat(&fd, name.as_str(), Mode::S_IRWXU).map(|()| ((), path.join(&name)));
        let ((), cleanup) = Cleanup::of(make).map_err(failed)?;
        let unfinished =
            openat(&fd, name.as_str(), flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed)?;
        let names = HashSet::new();
        let _cleanup = cleanup;
        Ok(Directory { path, fd, unfinished, _cleanup, names, permissions, sync, used })
    }

    /// Makes a file. One of the same name that was made before does not count.
    pub(crate) fn create(&mut self, name: &FileName) -> Result<OwnedFd, Error> {
        // Some filter may listen there.
        let sockets = [Direction::Capture, Direction::Serve].map(Direction::socket_name);
        if sockets.contains(&name.as_str()) {
            return Err(Error::SocketName(name.clone()));
        }
        self.refuse_used(name)?;
        let flags = OFlag::O_CREAT
            | OFlag::O_TRUNC
            | OFlag::O_WRONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC;
        let Permissions(wanted) = self.permissions;
        let own = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&self.unfinished, name.as_str(), flags, own)
            // Some file systems know no permissions, and say so when one wants others.
            .and_then(|file| {
                if wanted == own { Ok(()) } else { fchmod(&file, wanted) }.map(|()| file)
            })
            .map_err(|error| self.failed(name, error.into()))?;
        self.names.insert(name.clone());
        Ok(file)
    }

    /// Closes a file of the directory that is complete.
    pub(crate) fn close(&self, file: Endpoint) -> io::Result<()> {
        self.sync(&file)?;
        file.close()
    }

    /// Has a complete file on the disk, here or on a descriptor, if that is asked for.
    pub(crate) fn sync(&self, file: &Endpoint) -> io::Result<()> {
        if self.sync && file.kind() == Kind::File {
            fsync(file)?;
        }
        Ok(())
    }

    /// Puts the files in their places. The image must be complete.
    pub(crate) fn publish(self) -> Result<(), Error> {
        self.names.iter().try_for_each(|name| self.refuse_directory(name))?;
        let inventory = self.names.iter().find(|name| name.as_str() == INVENTORY);
        if let Some(inventory) = inventory {
            match unlinkat(&self.fd, INVENTORY, UnlinkatFlags::NoRemoveDir) {
                Ok(()) => self.settle()?,
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(self.failed(inventory, error.into())),
            }
        }
        let others = self.names.iter().filter(|name| name.as_str() != INVENTORY);
        others.into_iter().try_for_each(|name| self.reveal(name))?;
        self.settle()?;
        if let Some(inventory) = inventory {
            self.reveal(inventory)?;
            self.settle()?;
        }
        Ok(())
    }

    /// What the image would replace that is at work: the image itself, or where an external file
    /// goes, which would be lost with its old name.
    fn refuse_used(&self, name: &FileName) -> Result<(), Error> {
        let found = fstatat(&self.fd, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        match found.and_then(|stat| self.used.part_of(FileId::of_stat(&stat)?)) {
            Some(place) => Err(Error::SameFile(self.path.clone(), name.clone(), place.clone())),
            None => Ok(()),
        }
    }

    /// A directory in a file's place: better seen before anything is replaced.
    fn refuse_directory(&self, name: &FileName) -> Result<(), Error> {
        let found = fstatat(&self.fd, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let format = |stat: FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        match found.map(format) {
            Ok(SFlag::S_IFDIR) => Err(self.failed(name, Errno::EISDIR.into())),
            _ => Ok(()),
        }
    }

    fn reveal(&self, name: &FileName) -> Result<(), Error> {
        renameat(&self.unfinished, name.as_str(), &self.fd, name.as_str())
            .map_err(|error| self.failed(name, error.into()))
    }

    /// Has the directory's own changes so far on the disk before the next one.
    fn settle(&self) -> Result<(), Error> {
        if self.sync {
            fsync(&self.fd).map_err(|error| Error::Path(self.path.clone(), error.into()))?;
        }
        Ok(())
    }

    /// The error that writing a file has met.
    pub(crate) fn failed(&self, name: &FileName, error: io::Error) -> Error {
        Error::File(self.path.clone(), name.clone(), error)
    }
}
