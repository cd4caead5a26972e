//! Removes sockets and unfinished files when the program ends, also by a signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static REGISTERED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A file, a socket or a directory that is removed when this is dropped, or when a signal ends
/// the program.
#[derive(Debug)]
pub struct Cleanup {
    path: PathBuf,
}

impl Cleanup {
    /// Makes something, and registers its path. A signal that ends the program comes before both
    /// or after both: there is no moment at which it would leave behind what was just made.
    pub fn of<T, E>(make: impl FnOnce() -> Result<(T, PathBuf), E>) -> Result<(T, Cleanup), E> {
        let mut paths = registered();
        let (made, path) = make()?;
        paths.push(path.clone());
        Ok((made, Cleanup { path }))
    }

    /// Keeps the path: it is what it was meant to be.
    pub fn keep(self) {
        unregister(&self.path);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if unregister(&self.path) {
            remove(&self.path);
        }
    }
}

/// Removes all that is registered; nothing can be registered afterwards until the lock, which is
/// returned, is dropped.
pub(crate) fn remove_all() -> MutexGuard<'static, Vec<PathBuf>> {
    let mut paths = registered();
    paths.drain(..).for_each(|path| remove(&path));
    paths
}

fn registered() -> MutexGuard<'static, Vec<PathBuf>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unregister(path: &Path) -> bool {
    let mut paths = registered();
    let found = paths.iter().position(|registered| registered == path);
    found.map(|index| paths.swap_remove(index)).is_some()
}

fn remove(path: &Path) {
    // When a signal ends the program, the rest of it may still be making files in a directory:
    // one that is made at the wrong moment costs another try.
    const TRIES: usize = 100;

    // What cannot be removed is not ours any more.
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        let is_gone = |_: &usize| !path.exists() || fs::remove_dir_all(path).is_ok();
        let _ = (0..TRIES).find(is_gone);
    } else {
        let _ = fs::remove_file(path);
    }
}
