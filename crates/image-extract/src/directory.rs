//! The images directory, which gets all files of an image or none.
//!
//! Files are written in a directory of our own inside it, which nobody else can have put
//! anything into, and moved to their names when the image is complete. `inventory.img`, without
//! which nothing can be restored, goes first and comes last: whenever it is there, so is all of
//! the image that it belongs to.

use crate::error::Error;
use cli::Cleanup;
use criu_protocol::INVENTORY;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
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
}

impl Directory {
    /// Begins to fill the directory.
    pub(crate) fn open(path: PathBuf) -> Result<Directory, Error> {
        let failed = |error: Errno| Error::Path(path.clone(), error.into());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&path, flags | OFlag::O_RDONLY, Mode::empty()).map_err(failed)?;
        let random = cli::new_image_id().map_err(Error::System)?;
        let name = format!(".image-extract.{random}");
        mkdirat(&fd, name.as_str(), Mode::S_IRWXU).map_err(failed)?;
        let cleanup = Cleanup::new(path.join(&name));
        let unfinished =
            openat(&fd, name.as_str(), flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed)?;
        Ok(Directory { path, fd, unfinished, _cleanup: cleanup, names: HashSet::new() })
    }

    /// Makes a file, with the permissions that CRIU gives its own. One of the same name that was
    /// made before does not count.
    pub(crate) fn create(&mut self, name: &FileName) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_CREAT
            | OFlag::O_TRUNC
            | OFlag::O_WRONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&self.unfinished, name.as_str(), flags, mode)
            .map_err(|error| self.failed(name, error.into()))?;
        self.names.insert(name.clone());
        Ok(file)
    }

    /// Puts the files in their places. The image must be complete.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let inventory = self.names.iter().find(|name| name.as_str() == INVENTORY);
        if let Some(inventory) = inventory {
            match unlinkat(&self.fd, INVENTORY, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(self.failed(inventory, error.into())),
            }
        }
        let others = self.names.iter().filter(|name| name.as_str() != INVENTORY);
        for name in others.chain(inventory) {
            renameat(&self.unfinished, name.as_str(), &self.fd, name.as_str())
                .map_err(|error| self.failed(name, error.into()))?;
        }
        Ok(())
    }

    /// The error that writing a file has met.
    pub(crate) fn failed(&self, name: &FileName, error: io::Error) -> Error {
        Error::Path(self.path.join(name.as_str()), error)
    }
}
