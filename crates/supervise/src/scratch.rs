//! A directory of ours alone, for as long as a command works.

use nix::unistd::{geteuid, mkdtemp};
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where CRIU and a filter meet. The one that the user names may have any length, and a UNIX
/// socket's path may not, as CRIU has it; so each run has a short one of its own.
#[derive(Clone, Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one in `$TMPDIR` or `/tmp`: not in the former if its path is too long for a socket.
    pub fn new() -> io::Result<Scratch> {
        /// A socket's path has at most 107 bytes.
        const LONGEST: usize = 107 - "/criu-stream-XXXXXX/streamer-capture.sock".len();

        let tmp = PathBuf::from("/tmp");
        let wanted =
            env::var_os("TMPDIR").map(PathBuf::from).filter(|it| !it.as_os_str().is_empty());
        let wanted = wanted.map(std::path::absolute).transpose()?;
        let parent = wanted.filter(|it| it.as_os_str().len() <= LONGEST).unwrap_or(tmp);
        let path = mkdtemp(&parent.join("criu-stream-XXXXXX"))?;
        Ok(Scratch { path })
    }

    /// Its path, which is absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, with all that is in it.
    pub fn remove(&self) {
        // Something that was killed may still be making a file.
        const TRIES: usize = 100;
        let is_gone = |_: &usize| !self.path.exists() || fs::remove_dir_all(&self.path).is_ok();
        let _ = (0..TRIES).find(is_gone);
    }

    /// Keeps a file of it under a name beside it, and returns that.
    pub fn keep(&self, file: &Path, name: &str) -> Option<PathBuf> {
        let directory = self.path.parent()?;
        let tag = self.path.extension().or(self.path.file_name())?.to_str()?.rsplit('-').next()?;
        let kept = directory.join(format!("{name}-{tag}.log"));
        // In a directory where others may write, only a name that was free is ours.
        fs::hard_link(file, &kept).ok()?;
        Some(kept)
    }
}

/// Whether a directory is the user's or root's own, and nobody else may write to it.
pub fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).is_ok_and(|it| {
        it.is_dir() && (it.uid() == geteuid().as_raw() || it.uid() == 0) && it.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ours_alone_and_goes_with_all_that_is_in_it() {
        let scratch = Scratch::new().unwrap();
        assert!(is_private(scratch.path()));
        fs::write(scratch.path().join("x"), "x").unwrap();
        let kept = scratch.keep(&scratch.path().join("x"), "criu-dump").unwrap();
        scratch.remove();
        assert!(!scratch.path().exists());
        assert_eq!(fs::read(&kept).unwrap(), b"x");
        fs::remove_file(kept).unwrap();
    }
}
