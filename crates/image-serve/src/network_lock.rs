//! CRIU's network lock, which it restores from no stream, as it does no rules of nftables.
//!
//! While it restores TCP connections in a network namespace, the lock that was saved with it keeps
//! packets from them. CRIU asks for `nftables-N.img` from within the new namespace, and waits for the
//! reply. So the kernel tells where that is, and nft(8) can do there what CRIU would have done.
//!
//! With other rules it could do the same. They are refused: what nft cannot read back is easily
//! overlooked, and from a directory CRIU restores all.

use pipe_io::process;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitStatus, Stdio};

/// Why the lock is not in place.
#[derive(Debug)]
pub(crate) enum LockError {
    /// No process can be seen that waits for it.
    NoAsker,
    /// A program could not be started, or be spoken with.
    Start(io::Error),
    /// A program has failed, with these words.
    Failed(ExitStatus, String),
}

/// Puts these rules in place in the network namespace of the process that has asked for them;
/// `false` if that is our own, where CRIU restores none.
///
/// This waits for nft, as CRIU waits for us. It is a moment in which nothing else of
/// the restore goes on.
pub(crate) fn put_in_place(rules: &[u8], asker: Option<i32>) -> Result<bool, LockError> {
    let asker = asker.filter(|pid| *pid > 0).ok_or(LockError::NoAsker)?;
    let network = File::open(format!("/proc/{asker}/ns/net")).map_err(LockError::Start)?;
    if is_our_own(&network).map_err(LockError::Start)? {
        return Ok(false);
    }
    process::keep_statuses_of_children();
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()));
    nsenter.args(["nft", "--file", "-"]);
    nsenter.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    process::with_us(&mut nsenter);
    let mut nsenter = nsenter.spawn().map_err(LockError::Start)?;
    // nft reads all of it before it says anything. One that has failed says why.
    let written = nsenter.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules));
    let ended = nsenter.wait_with_output().map_err(LockError::Start)?;
    if !ended.status.success() {
        let words = String::from_utf8_lossy(&ended.stderr);
        let first = words.lines().next().unwrap_or_default().to_owned();
        return Err(LockError::Failed(ended.status, first));
    }
    written.map(|()| true).map_err(LockError::Start)
}

fn is_our_own(network: &File) -> io::Result<bool> {
    let (theirs, ours) = (network.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::NoAsker => f.write_str("the kernel does not tell which process asks"),
            LockError::Start(error) => write!(f, "nsenter: {}", cli::reason(error)),
            LockError::Failed(status, words) if words.is_empty() => write!(f, "nft: {status}"),
            LockError::Failed(_, words) => f.write_str(words),
        }
    }
}
