//! What a filter stands between in one cell, and what is left of it.

use std::any::Any;
use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::criu::{RestoreClient, pipe};
use tests::pipeline::{Filter, Running, collect_from};
use tests::random::Random;
use tests::stream::{Writer, looks_complete, read_stream};

/// The variable that the filter and all that it starts can be found by.
const TAG: &str = "FAULT_MATRIX";

/// More than what readers take here, 1 MiB, and the largest pipe behind it, 4 MiB.
const PAGES: usize = 6 << 20;

/// An image, and where in it something can happen.
pub(crate) struct Image {
    pub(crate) stream: Vec<u8>,
    /// Names and bytes from the start.
    pub(crate) points: Vec<(&'static str, usize)>,
}

/// The image of all cells.
pub(crate) static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let mut points = vec![("at byte 0", 0), ("in a marker", 7)];
    let named = Writer::new().name("core-1.img");
    let begun = named.clone().data(&[0; 0]).finish().len();
    points.push(("in a payload", begun + PAGES / 2));
    let file = named.data(&Random::new(11).bytes(PAGES)).file_eof();
    points.push(("between files", file.clone().finish().len()));
    let files = file.file("inventory.img", b"everything");
    points.push(("before image_eof", files.clone().finish().len()));
    let stream = files.image_eof().finish();
    points.push(("in image_eof", stream.len() - 2));
    Image { stream, points }
});

/// One cell's directory, descriptors and threads.
pub(crate) struct Scene {
    filter: &'static str,
    dir: TempDir,
    tag: String,
    outputs: RefCell<Vec<JoinHandle<Vec<u8>>>>,
    kept: RefCell<Vec<Box<dyn Any>>>,
}

impl Scene {
    pub(crate) fn new(filter: &'static str) -> Scene {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let tag = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("images")).expect("a directory");
        Scene { filter, dir, tag, outputs: RefCell::default(), kept: RefCell::default() }
    }

    /// The images directory.
    pub(crate) fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Another path, outside the images directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keeps something as it is until the filter has ended.
    pub(crate) fn keep(&self, something: impl Any) {
        self.kept.borrow_mut().push(Box::new(something));
    }

    /// The cell's filter.
    pub(crate) fn filter(&self) -> &'static str {
        self.filter
    }

    /// A filter that can be found afterwards, and all that it starts.
    pub(crate) fn tagged(&self, filter: Filter) -> Filter {
        filter.env(TAG, &self.tag)
    }

    /// A pipe whose content is collected.
    pub(crate) fn collected(&self) -> OwnedFd {
        let (read_end, write_end) = pipe(None).expect("a pipe");
        self.outputs.borrow_mut().push(collect_from(read_end));
        write_end
    }

    /// The cell's filter, between these two. Those that write no stream write `core-1.img` to
    /// `output`.
    pub(crate) fn between(&self, input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Filter {
        self.put_between(Filter::new(self.filter), input, output)
    }

    /// The same, started after these commands of a shell.
    pub(crate) fn between_after(
        &self,
        commands: &str,
        input: impl Into<OwnedFd>,
        output: impl Into<OwnedFd>,
    ) -> Filter {
        self.put_between(Filter::after(commands, self.filter), input, output)
    }

    /// The same, started by this launcher.
    pub(crate) fn between_under(
        &self,
        launcher: &[&str],
        input: impl Into<OwnedFd>,
        output: impl Into<OwnedFd>,
    ) -> Filter {
        self.put_between(Filter::under(launcher, self.filter), input, output)
    }

    fn put_between(
        &self,
        filter: Filter,
        input: impl Into<OwnedFd>,
        output: impl Into<OwnedFd>,
    ) -> Filter {
        let filter = self.tagged(filter).progress_apart();
        match self.filter {
            "criu-sock-capture" => filter
                .arg("-D")
                .arg(self.images())
                .args(["-e", "fs.tar:20"])
                .fd(20, input)
                .stdout(output),
            "shard-split" => filter.args(["-s", "10"]).stdin(input).fd(10, output),
            "shard-merge" => filter.args(["-s", "10"]).fd(10, input).stdout(output),
            _ => filter
                .arg("-D")
                .arg(self.images())
                .args(["-e", "core-1.img:20"])
                .stdin(input)
                .fd(20, output),
        }
    }

    /// Starts the filter, and gives it the first so many bytes of the image; what follows can be
    /// written to what is returned, or not.
    pub(crate) fn fed(
        &self,
        filter: impl FnOnce(OwnedFd) -> Filter,
        bytes: usize,
    ) -> (Running, OwnedFd) {
        let (input, feed) = pipe(None).expect("a pipe");
        let running = filter(input).start();
        let mut file = fs::File::from(feed.try_clone().expect("a descriptor"));
        // A filter that ends early reads no more.
        let _ = file.write_all(&IMAGE.stream[..bytes]);
        (running, feed)
    }

    /// What is needed for a success besides the stream: a CRIU that restores.
    pub(crate) fn restore_if_served(&self, running: &Running) {
        if self.filter != "image-serve" {
            return;
        }
        running.wait_for("socket-init");
        let mut client = RestoreClient::connect(&self.images()).expect("the socket is there");
        client.read("inventory.img").expect("a reply").expect("the inventory");
    }

    /// Processes and sockets of the cell that are still there.
    pub(crate) fn left_in_proc(&self) -> Option<String> {
        let tagged = format!("{TAG}={}", self.tag);
        let is_tagged = |path: &PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == tagged.as_bytes())
        };
        let limit = Instant::now() + Duration::from_secs(2);
        loop {
            let processes = fs::read_dir("/proc").expect("/proc").flatten();
            let left = processes.map(|process| process.path()).find(is_tagged);
            let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            let listens = sockets.contains(&*self.images().to_string_lossy());
            match left {
                None if !listens => return None,
                // A killed one may take a moment.
                _ if Instant::now() < limit => thread::sleep(Duration::from_millis(5)),
                Some(process) => return Some(format!("{} is left", process.display())),
                None => return Some("a socket is left".into()),
            }
        }
    }

    /// What is in the images directory and should not be. One that was killed could not clear
    /// away its socket or its unfinished files, but nothing may look like an image.
    pub(crate) fn left_on_disk(&self, status: &ExitStatus) -> Option<String> {
        let entries = fs::read_dir(self.images()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        if status.signal() == Some(Signal::SIGKILL as i32) {
            names.retain(|name| name == "inventory.img");
        }
        let extracted = status.success() && self.filter == "image-extract";
        let expected: &[&str] = if extracted { &["inventory.img"] } else { &[] };
        (names != expected).then(|| format!("left on disk: {names:?}"))
    }

    /// An output that looks like an image and is none, or is none and should be.
    pub(crate) fn left_in_outputs(&self, succeeded: bool) -> Option<String> {
        self.kept.borrow_mut().clear();
        let writes_a_stream =
            matches!(self.filter, "criu-sock-capture" | "shard-split" | "shard-merge");
        let outputs = self.outputs.borrow_mut().drain(..).collect::<Vec<_>>();
        for output in outputs {
            let output = output.join().expect("the output is collected");
            match succeeded {
                _ if !writes_a_stream => {}
                true => match read_stream(&output) {
                    Ok(_) => {}
                    Err(cause) => return Some(format!("the output is no image: {cause}")),
                },
                false if looks_complete(&output) => {
                    return Some("the output looks complete".into());
                }
                false => {}
            }
        }
        None
    }
}

/// Waits until the program has nothing to do.
pub(crate) fn settle(running: &Running) {
    let mut quiet = 0;
    let limit = Instant::now() + Duration::from_secs(10);
    while quiet < 4 && running.is_running() {
        assert!(Instant::now() < limit, "the filter never rests");
        quiet = if is_asleep(running) { quiet + 1 } else { 0 };
        thread::sleep(Duration::from_millis(3));
    }
}

fn is_asleep(running: &Running) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).into_iter().flatten();
    let mut states = tasks.flatten().map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    });
    states.next() == Some(true) && states.all(|asleep| asleep)
}
