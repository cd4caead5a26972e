//! A series of images of one tree, each an increment of the one before: what stays of it on this
//! machine from one checkpoint to the next.
//!
//! With each dump the kernel forgets what had changed before, also with one that fails. So an
//! increment is made only where it is certain that nothing came between: the last checkpoint of
//! this tree has succeeded, and none was begun since, here or elsewhere. In every other case the
//! image is a whole one.

use super::Refusal;
use super::pages::{Before, Images};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use wire_format::ImageId;

/// The small files of the last image, which has succeeded.
const LAST: &str = "criu-checkpoint.last";
/// Those of the image that comes about.
const NEW: &str = "criu-checkpoint.new";
/// Among the small files, by `criu-page-capture`: the id of the image.
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
}

impl Series {
    /// Takes the directory for a checkpoint of a tree, and finds out what that can build on: the
    /// last image here, if it is also the last one of the tree that there was.
    ///
    /// # Errors
    ///
    /// When another checkpoint has it, or it cannot be written to.
    pub(super) fn open(
        directory: &Path,
        last: Option<ImageId>,
    ) -> Result<(Series, Images), Refusal> {
        let failed = |error| Refusal::Path(directory.to_owned(), error);
        let file = File::open(directory).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => return Err(Refusal::InUse(directory.to_owned())),
            locked => locked.map_err(|(_, errno)| failed(errno.into()))?,
        };
        let series = Series { directory: directory.to_owned(), lock };
        series.begin(last).map(|images| (series, images)).map_err(failed)
    }

    fn begin(&self, last: Option<ImageId>) -> io::Result<Images> {
        let directory = self.directory.join(NEW);
        remove(&directory)?;
        let before = self.last().filter(|before| last == Some(before.id));
        if before.is_none() {
            remove(&self.directory.join(LAST))?;
        }
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Images { directory, before })
    }

    /// The last image, if an increment of it has all that has changed since.
    fn last(&self) -> Option<Before> {
        let last = self.directory.join(LAST);
        let id: ImageId = fs::read_to_string(last.join(ID)).ok()?.trim().parse().ok()?;
        let is_open = matches!(last.join(NEXT).symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
        is_open.then(|| Before { id, directory: Path::new("..").join(LAST) })
    }

    /// The image is safe, and the tree runs on: the next one can build on it.
    pub(super) fn go_on(&self) -> io::Result<()> {
        let (new, last) = (self.directory.join(NEW), self.directory.join(LAST));
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
    use tempfile::TempDir;

    const FIRST: ImageId = ImageId([1; 16]);

    /// What a checkpoint that has succeeded leaves.
    fn one_checkpoint(directory: &Path) {
        let (series, images) = Series::open(directory, None).unwrap();
        fs::write(images.directory.join(ID), format!("{FIRST}\n")).unwrap();
        series.go_on().unwrap();
    }

    /// What the next one builds on, if this is the last image of the tree.
    fn builds_on(directory: &Path, last: Option<ImageId>) -> Option<ImageId> {
        let (series, images) = Series::open(directory, last).unwrap();
        series.give_up().unwrap();
        images.before.map(|before| before.id)
    }

    #[test]
    fn an_image_builds_on_the_last_one() {
        let directory = TempDir::new().unwrap();
        assert_eq!(builds_on(directory.path(), None), None);
        one_checkpoint(directory.path());
        assert_eq!(builds_on(directory.path(), Some(FIRST)), Some(FIRST));
    }

    #[test]
    fn an_image_is_whole_when_something_may_lie_between() {
        let spoil: [fn(&Path); 3] = [
            |last| fs::write(last.join(NEXT), "x").unwrap(),
            |last| fs::write(last.join(ID), "no id").unwrap(),
            |last| fs::remove_file(last.join(ID)).unwrap(),
        ];
        for spoil in spoil {
            let directory = TempDir::new().unwrap();
            one_checkpoint(directory.path());
            spoil(&directory.path().join(LAST));
            assert_eq!(builds_on(directory.path(), Some(FIRST)), None);
            assert!(!directory.path().join(LAST).exists());
        }
        for last in [None, Some(ImageId([2; 16]))] {
            let directory = TempDir::new().unwrap();
            one_checkpoint(directory.path());
            assert_eq!(builds_on(directory.path(), last), None);
        }
    }

    #[test]
    fn a_series_is_one_checkpoint_s_at_a_time() {
        let directory = TempDir::new().unwrap();
        let first = Series::open(directory.path(), None).unwrap();
        let second = Series::open(directory.path(), None);
        assert!(matches!(second, Err(Refusal::InUse(_))));
        drop(first);
        assert!(Series::open(directory.path(), None).is_ok());
    }

    #[test]
    fn nothing_stays_when_the_tree_is_gone() {
        let directory = TempDir::new().unwrap();
        one_checkpoint(directory.path());
        let (series, _) = Series::open(directory.path(), Some(FIRST)).unwrap();
        series.end().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
