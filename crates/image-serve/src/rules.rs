//! Firewall rules, which CRIU restores from no stream.
//!
//! CRIU asks for `nftables-N.img` from within the new network namespace, and waits for the reply. So
//! the kernel tells where that namespace is, and nft(8) can do there what CRIU would have done.

use criu_protocol::is_only_network_lock;
use pipe_io::process;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitStatus, Stdio};

/// Why rules are not in place.
#[derive(Debug)]
pub(crate) enum RulesError {
    /// No process can be seen that waits for them.
    NoAsker,
    /// A program could not be started, or be spoken with.
    Start(io::Error),
    /// A program has failed, with these words.
    Failed(ExitStatus, String),
}

/// What has become of rules.
#[derive(Debug)]
pub(crate) enum Laid {
    /// They are in place.
    Yes,
    /// They are not for a network of CRIU's.
    No,
}

/// Puts rules in place in the network namespace of the process that has asked for them.
///
/// This waits for nft, as CRIU waits for us. It is some ten milliseconds, in which nothing else of
/// the restore goes on.
pub(crate) fn lay(rules: &[u8], asker: Option<i32>) -> Result<Laid, RulesError> {
    let asker = asker.filter(|pid| *pid > 0).ok_or(RulesError::NoAsker)?;
    let network = File::open(format!("/proc/{asker}/ns/net")).map_err(RulesError::Start)?;
    // Whatever asks from within our own network restores none.
    if is_our_own(&network).map_err(RulesError::Start)? {
        return Ok(Laid::No);
    }
    process::keep_statuses_of_children();
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()));
    nsenter.args(["nft", "--file", "-"]);
    nsenter.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    process::with_us(&mut nsenter);
    let mut nsenter = nsenter.spawn().map_err(RulesError::Start)?;
    // nft reads all of it before it says anything. One that has failed says why.
    let written = nsenter.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules));
    let ended = nsenter.wait_with_output().map_err(RulesError::Start)?;
    if !ended.status.success() {
        let words = String::from_utf8_lossy(&ended.stderr);
        let first = words.lines().next().unwrap_or_default().to_owned();
        return Err(RulesError::Failed(ended.status, first));
    }
    written.map(|()| Laid::Yes).map_err(RulesError::Start)
}

/// Whether nothing is lost without these rules: they are CRIU's own lock, and there is no
/// connection whose packets it would hold back until the restore is through.
pub(crate) fn are_needless(rules: &[u8], has_connections: bool) -> bool {
    !has_connections && is_only_network_lock(rules)
}

fn is_our_own(network: &File) -> io::Result<bool> {
    let (theirs, ours) = (network.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesError::NoAsker => f.write_str("the kernel does not tell which process asks"),
            RulesError::Start(error) => write!(f, "nsenter: {}", cli::reason(error)),
            RulesError::Failed(status, words) if words.is_empty() => write!(f, "nft: {status}"),
            RulesError::Failed(_, words) => f.write_str(words),
        }
    }
}
