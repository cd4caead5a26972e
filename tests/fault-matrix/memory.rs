//! A machine without memory: the group that the filter runs in has little.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::pipeline::{Filter, Running};

use crate::scene::{IMAGE, Scene};
use crate::start::limited;
use crate::table::{End, Table, refused};

/// A control group of processes that have so much memory and no more. It is removed in the end.
struct Group(PathBuf);

impl Group {
    /// `None` where such a group cannot be made.
    fn new(bytes: usize) -> Option<Group> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fault-matrix-{}-{number}", process::id());
        let limits = ["memory.max", "memory.limit_in_bytes"];
        memory_hierarchies().iter().find_map(|root| {
            let path = root.join(&name);
            fs::create_dir(&path).ok()?;
            let group = Group(path);
            let limit =
                limits.iter().map(|limit| group.0.join(limit)).find(|file| file.exists())?;
            // What it may not have in memory it may not have on a disk either.
            let _ = fs::write(group.0.join("memory.swap.max"), "0");
            fs::write(limit, bytes.to_string()).ok()?;
            Some(group)
        })
    }

    /// What a shell does to join it.
    fn join(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may take a moment to be gone.
        let is_gone = |_: &usize| {
            fs::remove_dir(&self.0).is_ok() || {
                thread::sleep(Duration::from_millis(10));
                false
            }
        };
        let _ = (0..100).find(is_gone);
    }
}

/// Where groups that limit memory may be made, of version 2 and of version 1.
fn memory_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let [_, path, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
                return None;
            };
            let limits = kind == "cgroup2"
                || (kind == "cgroup" && options.split(',').any(|option| option == "memory"));
            limits.then(|| Path::new(path).to_owned())
        })
        .collect()
}

/// A group with too little kills the filter at some moment, or does not come to that.
pub(crate) fn little(table: &mut Table) {
    for kibibytes in [128, 256, 512, 1024] {
        let fault = format!("ENOMEM (cgroup of {kibibytes} KiB)");
        in_group(table, &fault, End::Seen, kibibytes << 10, limited);
    }
    // Whatever goes through, what a filter itself needs is little.
    in_group(table, "cgroup of 8 MiB", End::Success, 8 << 20, limited);
}

/// The image is larger than what there is to hold it in. The matrix has no CRIU that comes: it
/// would never be told to.
pub(crate) fn too_little_to_hold(table: &mut Table) {
    let serve = |scene: &Scene, commands: &str, store: &str| {
        let filter = scene.tagged(Filter::after(commands, "image-serve")).progress_apart();
        let filter = filter.arg(store).arg("-D").arg(scene.images());
        let (running, feed) = scene.fed(|input: OwnedFd| filter.stdin(input), IMAGE.stream.len());
        drop(feed);
        running
    };
    let killed = End::Killed(Signal::SIGKILL);
    let fault = "ENOMEM (cgroup of 2 MiB), holding the image";
    in_group(table, fault, killed, 2 << 20, |scene, join| serve(scene, join, "--store=memory"));
    let message = refused("core-1.img: cannot be held: *memory");
    table.cell("start", "ENOMEM (ulimit -v), holding the image", message, |scene| {
        serve(scene, "ulimit -v 10000", "--store=memory")
    });
}

fn in_group(
    table: &mut Table,
    fault: &str,
    end: End,
    bytes: usize,
    act: impl FnOnce(&Scene, &str) -> Running,
) {
    match Group::new(bytes) {
        Some(group) => table.cell("start", fault, end, |scene| act(scene, &group.join())),
        None => table.skip("start", fault, "no control group for memory can be made here"),
    }
}
