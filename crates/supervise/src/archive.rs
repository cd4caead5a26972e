//! Files that go with a tree: archived by tar(1) while it is frozen, and put back before it runs.

use crate::shell::find_program;
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// The archive's name in an image.
pub const NAME: &str = "fs.tar";

/// Archives these files and directories, whose paths are absolute, to standard output.
pub(crate) fn pack(paths: &[PathBuf]) -> io::Result<Command> {
    let mut tar = tar()?;
    tar.args(["--create", "--sparse", "--xattrs", "--file=-", "--"]);
    // From the root, so that the names in the archive need not be changed.
    tar.args(paths.iter().map(|path| path.strip_prefix("/").unwrap_or(path)));
    Ok(tar)
}

/// Puts back what comes on standard input.
pub(crate) fn unpack() -> io::Result<Command> {
    let mut tar = tar()?;
    tar.args(["--extract", "--preserve-permissions", "--xattrs", "--file=-"]);
    Ok(tar)
}

fn tar() -> io::Result<Command> {
    let path = find_program("tar").ok_or(io::ErrorKind::NotFound)?;
    let mut tar = Command::new(path);
    tar.args(["--directory=/", "--numeric-owner"]);
    Ok(tar)
}
