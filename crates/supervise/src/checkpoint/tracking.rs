//! Which image was the last one of a tree for which the kernel has been told to forget what had
//! changed before, on this machine, whoever has made it: `criu-checkpoint --increments` with this
//! directory or another one, or `criu-migrate --pre-copy`. An increment of any other image would
//! lack what had changed between the two.

use super::Refusal;
use crate::scratch::is_private;
use crate::tree::Tree;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Pid, geteuid};
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use wire_format::ImageId;

/// What is known of a tree, and nobody else's to change as long as this is there.
#[derive(Debug)]
pub(super) struct Tracking {
    path: PathBuf,
    file: Flock<File>,
    tree: String,
}

impl Tracking {
    /// Takes what is known of this tree.
    ///
    /// # Errors
    ///
    /// When another checkpoint has it, or nothing can be noted.
    pub(super) fn open(tree: &Tree) -> Result<Tracking, Refusal> {
        let identity = tree.identity().map_err(Refusal::System)?;
        let directory = directory();
        let failed = |error| Refusal::Path(directory.clone(), error);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
            _ if is_private(&directory) => {}
            _ => return Err(failed(ErrorKind::PermissionDenied.into())),
        }
        Tracking::open_in(directory.clone(), tree.root(), identity)
    }

    fn open_in(directory: PathBuf, root: Pid, tree: String) -> Result<Tracking, Refusal> {
        let path = directory.join(root.to_string());
        let failed = |error| Refusal::Path(path.clone(), error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Tracking { path, file, tree }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Refusal::Tracked(root)),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// The last image of this tree.
    pub(super) fn last(&self) -> Option<ImageId> {
        let mut text = String::new();
        let mut file = &*self.file;
        file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
        let mut lines = text.lines();
        let is_of_tree = lines.next() == Some(self.tree.as_str());
        lines.next().filter(|_| is_of_tree)?.parse().ok()
    }

    /// Notes that an image is about to be made. To be called before CRIU is started.
    pub(super) fn note(&self, image: ImageId) -> io::Result<()> {
        let mut file = &*self.file;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n{image}\n", self.tree).as_bytes())
    }

    /// Forgets a tree that is gone.
    pub(super) fn forget(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Where it is noted: it goes with the machine's memory, as what is noted does.
fn directory() -> PathBuf {
    const NAME: &str = "criu-stream-utils";

    let user = geteuid();
    if user.is_root() {
        return PathBuf::from("/run").join(NAME);
    }
    match env::var_os("XDG_RUNTIME_DIR").filter(|it| !it.is_empty()) {
        Some(runtime) => PathBuf::from(runtime).join(NAME),
        None => PathBuf::from(format!("/tmp/{NAME}-{user}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpid;
    use tempfile::TempDir;

    const FIRST: ImageId = ImageId([1; 16]);
    const SECOND: ImageId = ImageId([2; 16]);

    fn open(directory: &TempDir, tree: &str) -> Result<Tracking, Refusal> {
        Tracking::open_in(directory.path().to_owned(), getpid(), tree.to_owned())
    }

    #[test]
    fn the_last_image_is_that_of_whoever_was_last() {
        let directory = TempDir::new().unwrap();
        assert_eq!(open(&directory, "a tree").unwrap().last(), None);
        open(&directory, "a tree").unwrap().note(FIRST).unwrap();
        assert_eq!(open(&directory, "a tree").unwrap().last(), Some(FIRST));
        open(&directory, "a tree").unwrap().note(SECOND).unwrap();
        assert_eq!(open(&directory, "a tree").unwrap().last(), Some(SECOND));
    }

    #[test]
    fn a_tree_that_had_the_same_number_is_another_one() {
        let directory = TempDir::new().unwrap();
        open(&directory, "a tree").unwrap().note(FIRST).unwrap();
        assert_eq!(open(&directory, "another").unwrap().last(), None);
    }

    #[test]
    fn one_checkpoint_at_a_time_has_it() {
        let directory = TempDir::new().unwrap();
        let first = open(&directory, "a tree").unwrap();
        assert!(matches!(open(&directory, "a tree"), Err(Refusal::Tracked(_))));
        first.forget();
        drop(first);
        assert_eq!(open(&directory, "a tree").unwrap().last(), None);
    }
}
