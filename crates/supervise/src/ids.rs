//! The process ids of an image, which must be free where it is restored.

use crate::family::Stat;
use nix::unistd::{Pid, getpid};
use prost::Message;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// The file of an image that lists its processes.
pub(crate) const PSTREE: &str = "pstree.img";

/// A process of an image, as far as it is of interest here (CRIU's `pstree_entry`).
#[derive(Clone, PartialEq, Message)]
struct Process {
    #[prost(uint32, required, tag = "1")]
    pid: u32,
    #[prost(uint32, repeated, tag = "5")]
    threads: Vec<u32>,
}

/// An id that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    id: u32,
    /// The name of whoever has it.
    by: String,
    /// Whether that has ended, and only waits to be reaped.
    pub is_zombie: bool,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Taken { id, by, is_zombie } = self;
        write!(f, "process id {id} of the tree is taken here by '{by}'")?;
        match is_zombie {
            true => f.write_str(", which has ended and was not waited for by its parent"),
            false => Ok(()),
        }
    }
}

/// The first id of a `pstree.img` that is taken.
pub(crate) fn first_taken(pstree: &[u8]) -> Option<Taken> {
    if has_namespace(pstree) {
        return None;
    }
    let is_taken = |id: &u32| Path::new(&format!("/proc/{id}")).exists();
    let id = ids(pstree).into_iter().find(is_taken)?;
    let by = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    let stat = Stat::of(Pid::from_raw(i32::try_from(id).unwrap_or(0)));
    let is_zombie = stat.is_some_and(|stat| matches!(stat.state, 'Z' | 'X'));
    Some(Taken { id, by: by.trim_end().to_owned(), is_zombie })
}

/// Whether a tree begins with process 1, and so brings a PID namespace of its own.
pub(crate) fn has_namespace(pstree: &[u8]) -> bool {
    ids(pstree).contains(&1)
}

/// All ids, of threads too. What cannot be understood has none.
fn ids(pstree: &[u8]) -> BTreeSet<u32> {
    /// Two magic numbers.
    const HEAD: usize = 8;

    let mut ids = BTreeSet::new();
    let mut rest = pstree.get(HEAD..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(entry) = after.get(..length) else { break };
        if let Ok(process) = Process::decode(entry) {
            ids.insert(process.pid);
            ids.extend(process.threads);
        }
        rest = after.get(length..).unwrap_or_default();
    }
    ids
}

/// In a PID namespace that is not the machine's: has the kernel give high ids to what we start, as
/// the tree that will be restored here may have any of the low ones. Does nothing where that is not
/// allowed, or not needed.
pub fn stay_out_of_the_way() {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    /// The inode of the machine's own PID namespace, since Linux 3.8.
    const MACHINE: &str = "pid:[4026531836]";

    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if namespace.as_os_str() == MACHINE {
        return;
    }
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let Some(max) = number("/proc/sys/kernel/pid_max") else { return };
    // A tree that was restored here goes on with ids that follow these. So they are others each
    // time, in the third quarter, unless this is higher up already.
    let random = pipe_io::random().map_or(0, u128::from_le_bytes);
    let wanted = max / 2 + (random % u128::from(max / 4).max(1)) as u64;
    if (getpid().as_raw() as u64) < max / 2 {
        let _ = fs::write(LAST_PID, wanted.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pstree(ids: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        for pid in ids {
            let entry = Process { pid: *pid, threads: vec![*pid, pid + 1] }.encode_to_vec();
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    #[test]
    fn an_id_that_is_taken_is_found_with_its_owner() {
        let id = std::process::id();
        let taken = first_taken(&pstree(&[i32::MAX as u32 - 1, id])).unwrap();
        assert!(!taken.is_zombie);
        assert_eq!(taken.id, id);
        assert!(!taken.by.is_empty());
    }

    #[test]
    fn a_tree_with_a_namespace_of_its_own_takes_no_id() {
        assert_eq!(first_taken(&pstree(&[1, std::process::id()])), None);
    }

    #[test]
    fn what_is_cut_short_has_the_ids_before() {
        let mut bytes = pstree(&[10, 20]);
        bytes.truncate(bytes.len() - 1);
        assert_eq!(ids(&bytes).into_iter().collect::<Vec<_>>(), [10, 11]);
        assert!(ids(b"x").is_empty());
    }
}
