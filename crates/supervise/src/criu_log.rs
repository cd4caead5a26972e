//! What CRIU says of a failure, in its log.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The first errors of a log, and what can be done about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// CRIU's own lines. The first says why; later ones follow from it.
    pub errors: Vec<String>,
    /// What the user can do.
    pub hints: Vec<&'static str>,
}

/// How many of CRIU's errors are shown.
const SHOWN: usize = 5;

/// Errors that CRIU survives, or that say nothing.
const NOISE: [&str; 7] = [
    // Without CAP_SYS_RESOURCE.
    "rlimit: Can't setup RLIMIT_NOFILE",
    "Dumping FAILED",
    "Restoring FAILED",
    "One of more action scripts failed",
    "may not go on",
    // What follows the end of the pipes, which ended for a reason of their own.
    "Unable to connect to image streamer",
    "Can't find image streamer",
];

/// What a line of CRIU's holds, and what the user can do then.
const HINTS: &[(&[&str], &str)] = &[
    (
        &["In-flight connection"],
        "the tree has not accepted a TCP connection yet: --skip-in-flight leaves it out, and \
         --tcp-established keeps those that it has accepted",
    ),
    // Before what else is missing.
    (
        &["iptables", "ip6tables", "Unable to lock network", "network_lock"],
        "the network cannot be locked: install nftables and use --network-lock nftables, or use \
         --network-lock skip if the tree has no connections to other hosts",
    ),
    (
        &["tcp-established", "Connected TCP socket"],
        "the tree has a TCP connection: --tcp-established keeps it, --tcp-close closes it",
    ),
    (
        &["ghost file", "ghost-limit"],
        "the tree has a deleted file open: --ghost-limit says up to which size it is stored",
    ),
    (
        &["has bad size", "file size mismatch"],
        "a file that was open has another size than at the dump: bring back the one of that moment",
    ),
    (
        &["Can't open file", "open file on fd", "No such file or directory"],
        "a file that was open is missing here: bring it back under the same name",
    ),
    (
        &["Can't fork for", "Pid ", "pid is busy"],
        "a process id of the tree is taken here: end that process, or restore in a new PID \
         namespace (unshare --pid --fork --mount-proc)",
    ),
    (
        &["session leader", "not a session leader", "A session leader of"],
        "the root is not a session of its own: start the program with setsid, or use --shell-job \
         for the job of a terminal",
    ),
    (
        &["Found dangling tty", "shell-job", "inherit tty"],
        "the tree has a terminal: use --shell-job on the same terminal, or start the program with \
         its input and output elsewhere",
    ),
    (
        &["external unix", "Can't dump half of stream unix", "ext-unix-sk"],
        "the tree has a UNIX socket whose other end is outside: --external unix[INODE] dumps it",
    ),
    (
        &["outside of", "is not in the list of", "not reachable from"],
        "a part of the tree is outside of its namespaces or of its root directory",
    ),
    (&["nftables"], "CRIU restores no firewall rules from a stream: use criu-restore --directory"),
    (
        &["hugetlb", "Can't read hugepage", "premap"],
        "CRIU restores private huge pages from no stream: use criu-restore --directory",
    ),
    (
        &["Unknown socket", "Unsupported socket", "unsupported socket"],
        "the tree has a kind of socket that CRIU cannot dump",
    ),
];

/// Removes the log of an earlier run, which must not be taken for this one's. What is no regular
/// file, such as `/dev/null`, stays.
pub fn remove(log: &Path) {
    if fs::symlink_metadata(log).is_ok_and(|it| it.is_file()) {
        let _ = fs::remove_file(log);
    }
}

/// Reads a log.
pub fn causes(log: &Path) -> io::Result<Causes> {
    let mut causes = Causes::default();
    for line in BufReader::new(File::open(log)?).split(b'\n') {
        causes.take(&String::from_utf8_lossy(&line?));
    }
    Ok(causes)
}

impl Causes {
    fn take(&mut self, line: &str) {
        if !line.contains("Error (") || NOISE.iter().any(|noise| line.contains(noise)) {
            return;
        }
        if self.errors.len() >= SHOWN {
            return;
        }
        // Only the first errors are causes.
        let hint = HINTS.iter().find(|(words, _)| words.iter().any(|word| line.contains(word)));
        if let Some((_, hint)) = hint.filter(|_| self.hints.is_empty()) {
            self.hints.push(hint);
        }
        self.errors.push(line.trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_removed() {
        let directory = std::env::temp_dir().join(format!("criu-log-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (file, link) = (directory.join("file"), directory.join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        remove(&link);
        remove(&file);
        assert!(fs::symlink_metadata(&link).is_ok() && !file.exists());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_first_errors_are_the_cause_and_noise_is_left_out() {
        let mut causes = Causes::default();
        for line in [
            "(00.068629) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self",
            "(00.070000) Warn  (criu/x.c:1): nothing",
            "(00.071000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.",
            "(00.072000) Error (criu/cr-dump.c:1672): Dump files (pid: 33) failed with -1",
            "(00.073000) Error (criu/cr-dump.c:2098): Dumping FAILED.",
        ] {
            causes.take(line);
        }
        assert_eq!(causes.errors.len(), 2);
        assert!(causes.errors[0].contains("tcp-established"));
        assert!(causes.hints[0].contains("--tcp-established"));
    }
}
