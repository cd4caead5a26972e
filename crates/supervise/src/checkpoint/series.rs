//! A series of images of one tree, each an increment of the one before: what stays of it on this
//! machine from one checkpoint to the next.
//!
//! With each dump the kernel forgets what had changed before, also with one that fails. So an
//! increment is made only where it is certain that nothing came between: the last checkpoint of
//! this tree has succeeded, and none was begun since. In every other case the image is a whole one.

use super::Refusal;
use super::pages::{Before, Images};
use crate::tree::Tree;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use wire_format::ImageId;

/// The small files of the last image, which has succeeded.
const LAST: &str = "last";
/// Those of the image that comes about.
const NEW: &str = "new";
/// Among the small files: the tree that they are of.
const TREE: &str = "criu-checkpoint.tree";
/// The same by `criu-page-capture`: the id of the image.
const ID: &str = "criu-page-capture.id";
/// The same: there if an increment of the image was begun.
const NEXT: &str = "criu-page-capture.next";
/// The same by CRIU: a link to the directory of the image before.
const PARENT: &str = "parent";

/// The directory of a series, which is ours alone.
#[derive(Debug)]
pub(super) struct Series {
    directory: PathBuf,
    #[expect(dead_code, reason = "unlocks the directory when it is dropped")]
    lock: Flock<File>,
    tree: String,
}

impl Series {
    /// Takes the directory for a checkpoint of this tree, and finds out what that can build on.
    ///
    /// # Errors
    ///
    /// When another checkpoint has it, or it cannot be written to.
    pub(super) fn open(directory: &Path, tree: &Tree) -> Result<(Series, Images), Refusal> {
        let failed = |error| Refusal::Path(directory.to_owned(), error);
        let file = File::open(directory).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => return Err(Refusal::InUse(directory.to_owned())),
            locked => locked.map_err(|(_, errno)| failed(errno.into()))?,
        };
        let tree = tree.identity().map_err(Refusal::System)?;
        let series = Series { directory: directory.to_owned(), lock, tree };
        series.begin().map(|images| (series, images)).map_err(failed)
    }

    fn begin(&self) -> io::Result<Images> {
        let directory = self.directory.join(NEW);
        remove(&directory)?;
        let before = self.last();
        if before.is_none() {
            remove(&self.directory.join(LAST))?;
        }
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Images { directory, before })
    }

    /// The last image, if an increment of it has all that has changed since.
    fn last(&self) -> Option<Before> {
        let last = self.directory.join(LAST);
        let read = |name| fs::read_to_string(last.join(name)).ok();
        let id: ImageId = read(ID)?.trim().parse().ok()?;
        let is_of_tree = read(TREE)?.trim() == self.tree;
        let is_open = matches!(last.join(NEXT).symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
        (is_of_tree && is_open).then(|| Before { id, directory: Path::new("..").join(LAST) })
    }

    /// The image is safe, and the tree runs on: the next one can build on it.
    pub(super) fn go_on(&self) -> io::Result<()> {
        let (new, last) = (self.directory.join(NEW), self.directory.join(LAST));
        fs::write(new.join(TREE), format!("{}\n", self.tree))?;
        remove(&last)?;
        // It would lead to itself.
        remove(&new.join(PARENT))?;
        fs::rename(new, last)
    }

    /// The tree is gone: no image can build on another one of it.
    pub(super) fn end(&self) -> io::Result<()> {
        self.give_up()?;
        remove(&self.directory.join(LAST))
    }

    /// There is no image.
    pub(super) fn give_up(&self) -> io::Result<()> {
        remove(&self.directory.join(NEW))
    }
}

/// Removes a file, or a directory with all that is in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let is_directory = path.symlink_metadata().is_ok_and(|it| it.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpid;
    use tempfile::TempDir;

    const FIRST: &str = "00000000000000000000000000000001";

    fn own_tree() -> Tree {
        Tree::of(getpid()).unwrap()
    }

    /// What a checkpoint that has succeeded leaves.
    fn one_checkpoint(directory: &Path) {
        let (series, images) = Series::open(directory, &own_tree()).unwrap();
        fs::write(images.directory.join(ID), format!("{FIRST}\n")).unwrap();
        series.go_on().unwrap();
    }

    fn builds_on(directory: &Path) -> Option<String> {
        let (series, images) = Series::open(directory, &own_tree()).unwrap();
        series.give_up().unwrap();
        images.before.map(|before| before.id.to_string())
    }

    #[test]
    fn an_image_builds_on_the_last_one_of_the_same_tree() {
        let directory = TempDir::new().unwrap();
        assert_eq!(builds_on(directory.path()), None);
        one_checkpoint(directory.path());
        assert_eq!(builds_on(directory.path()).as_deref(), Some(FIRST));
        // One that has failed before it came to memory changes nothing.
        assert_eq!(builds_on(directory.path()).as_deref(), Some(FIRST));
    }

    #[test]
    fn an_image_is_whole_when_something_may_lie_between() {
        let spoil: [fn(&Path); 4] = [
            |last| fs::write(last.join(NEXT), "x").unwrap(),
            |last| fs::write(last.join(TREE), "another tree").unwrap(),
            |last| fs::write(last.join(ID), "no id").unwrap(),
            |last| fs::remove_file(last.join(TREE)).unwrap(),
        ];
        for spoil in spoil {
            let directory = TempDir::new().unwrap();
            one_checkpoint(directory.path());
            spoil(&directory.path().join(LAST));
            assert_eq!(builds_on(directory.path()), None);
            assert!(!directory.path().join(LAST).exists());
        }
    }

    #[test]
    fn a_series_is_one_checkpoint_s_at_a_time() {
        let directory = TempDir::new().unwrap();
        let first = Series::open(directory.path(), &own_tree()).unwrap();
        let second = Series::open(directory.path(), &own_tree());
        assert!(matches!(second, Err(Refusal::InUse(_))));
        drop(first);
        assert!(Series::open(directory.path(), &own_tree()).is_ok());
    }

    #[test]
    fn nothing_stays_when_the_tree_is_gone() {
        let directory = TempDir::new().unwrap();
        one_checkpoint(directory.path());
        let (series, _) = Series::open(directory.path(), &own_tree()).unwrap();
        series.end().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
