//! What is started to take a tree and its image, and with what arguments.

use super::{Held, Verification};
use crate::archive;
use crate::cause::Cause;
use crate::checkpoint::peer::Peer;
use crate::checkpoint::{Destination, pages};
use crate::criu_log;
use crate::family::Role;
use crate::filters::{Tap, lending};
use crate::front::{AFTER_KILL, CRIU_GRACE};
use crate::gate::Gate;
use crate::shell::Part;
use pipe_io::pipe::Pipe;
use pipe_io::process;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// With so many shards, one is for the metadata, so that a restore can begin early. With two, a
/// single one would be left for the memory, and half as many compressors.
const WITH_METADATA: usize = 3;

impl Held {
    pub(super) fn start(&mut self) -> Result<(), Cause> {
        match &self.plan.destination {
            Destination::Command(_) => self.start_pipeline(),
            // The rest when it has answered.
            Destination::Host(route) => {
                self.peer = Some(Peer::connect(route, &self.shell, &mut self.holder)?);
                Ok(())
            }
        }
    }

    pub(super) fn start_pipeline(&mut self) -> Result<(), Cause> {
        let (stream, image) = Tap::new().map_err(Cause::System)?;
        if let Some(rounds) = &mut self.rounds {
            self.images = Some(rounds.begin(self.image).map_err(Cause::System)?);
        }
        match self.images {
            None => self.start_capture(&stream)?,
            Some(_) => self.start_page_capture(stream.writer().map_err(Cause::System)?)?,
        }
        self.stream = Some(stream);
        self.start_takers(image)
    }

    fn start_capture(&mut self, stream: &Tap) -> Result<(), Cause> {
        let directory = self.holder.scratch.path().to_owned();
        let id = self.image.to_string();
        let archive = match self.plan.files.is_empty() {
            true => None,
            false => {
                let (tap, archive) = Tap::new().map_err(Cause::System)?;
                self.files = Some(tap);
                Some(archive)
            }
        };
        let lent: Vec<&OwnedFd> = archive.iter().collect();
        let prepare = |command: &mut Command| {
            command.args(["--end-at-inventory", "--image-id", &id, "--images-dir"]).arg(directory);
            if let Some(archive) = &archive {
                let external = format!("{}:{}", archive::NAME, archive.as_raw_fd());
                command.args(["--ext-file-fds", &external]);
            }
            command.stdout(stream.writer()?);
            Ok(())
        };
        lending(&lent, || Ok(self.holder.start_filter(Role::Capture, "criu-sock-capture", prepare)))
            .map_err(Cause::System)?
    }

    pub(super) fn start_page_capture(&mut self, stream: OwnedFd) -> Result<(), Cause> {
        let Some(images) = self.images.clone() else { return Ok(()) };
        let (scratch, id) = (self.holder.scratch.path().to_owned(), self.image);
        self.holder.start_filter(Role::PageCapture, "criu-page-capture", |command| {
            images.prepare_capture(command, &scratch, id);
            command.stdout(stream);
            Ok(())
        })
    }

    /// Starts what takes the image, and splits it into shards if there are several.
    fn start_takers(&mut self, image: OwnedFd) -> Result<(), Cause> {
        if self.plan.shards.get() == 1 {
            return self.hand_over(None, image);
        }
        let mut readers = Vec::new();
        for _ in 0..self.plan.shards.get() {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            self.shards.push(tap);
            readers.push(read);
        }
        let fds: Vec<&OwnedFd> = self.shards.iter().map(Tap::fd).collect();
        let metadata_first = self.plan.shards.get() >= WITH_METADATA;
        self.holder.start_with_shards(Role::Split, "shard-split", &fds, |command| {
            if metadata_first {
                command.arg("--metadata-first");
            }
            command.stdin(image);
            Ok(())
        })?;
        let mut commands = readers.into_iter().enumerate();
        commands.try_for_each(|(index, read)| self.hand_over(Some(index), read))
    }

    /// Gives the image, or a shard of it, to whoever takes it.
    fn hand_over(&mut self, index: Option<usize>, image: OwnedFd) -> Result<(), Cause> {
        let text = match (&self.plan.destination, &mut self.peer) {
            (_, Some(peer)) => return peer.send(index, image, &mut self.holder),
            (Destination::Command(text), None) => text,
            (Destination::Host(_), None) => return Ok(()),
        };
        let part = Part {
            shard: index.map(|index| (index, self.plan.shards.get())),
            image: Some(self.image),
            parent: self.parent(),
        };
        let mut command = self.shell.command(text, part, &[0]);
        command.stdin(image);
        self.holder.start(Role::Command(index), command)
    }

    /// Starts CRIU if all memory of the tree is there: what is still on its way to a process that
    /// was restored with memory on demand would be missing in the image.
    pub(super) fn start_criu_if_possible(&mut self) -> Result<(), Cause> {
        if !self.due {
            return Ok(());
        }
        self.incomplete = self.tree.lacks_memory();
        self.due = self.incomplete.is_some();
        if self.due { Ok(()) } else { self.start_criu() }
    }

    fn start_criu(&mut self) -> Result<(), Cause> {
        let scratch = self.holder.scratch.path().to_owned();
        let mut criu = Command::new(&self.criu);
        // A tree that runs on between two rounds is not let go by anybody.
        let gate = match self.is_in_round() {
            true => None,
            false => Some(Gate::new().map_err(Cause::System)?),
        };
        criu.arg(if gate.is_some() { "dump" } else { "pre-dump" });
        match &self.images {
            None => _ = criu.args(["--stream", "--images-dir"]).arg(&scratch),
            Some(images) => images.prepare_criu(&mut criu),
        }
        criu.arg("--tree").arg(self.tree.root().to_string());
        criu.arg("--work-dir").arg(self.plan.logs.as_ref().unwrap_or(&scratch));
        // With more, CRIU notes each run of pages that it sends, and takes longer for that than for
        // an increment of fragmented memory.
        let verbosity = if self.images.is_some() { "-v3" } else { "-v4" };
        criu.args([verbosity, "--log-file", "dump.log"]);
        if self.plan.leave_running {
            criu.arg("--leave-running");
        }
        if let Some(gate) = &gate {
            gate.ask_here(&mut criu, self.plan.time_limit + CRIU_GRACE + AFTER_KILL);
        }
        criu.args(&self.plan.criu_options.arguments);
        criu_log::remove(&self.log());
        if let Some(tracking) = &self.tracking {
            tracking.note(self.image).map_err(Cause::System)?;
        }
        let holder = &mut self.holder;
        match self.images {
            None => holder.start_criu(criu, gate, false),
            Some(_) => {
                pages::connected(criu, &scratch, |criu| holder.start_criu(criu, gate, false))
                    .map_err(Cause::System)?
            }
        }
    }

    /// The tree is frozen: what it writes to does not change any more.
    pub(super) fn start_tar(&mut self) -> Result<(), Cause> {
        let Some(tap) = self.files.as_ref().filter(|_| !self.holder.has_failed()) else {
            return Ok(());
        };
        let mut tar =
            archive::pack(&self.plan.files).map_err(|error| Cause::NotStarted(Role::Tar, error))?;
        tar.stdin(Stdio::null()).stdout(tap.writer().map_err(Cause::System)?);
        process::in_a_new_session(&mut tar);
        self.holder.start(Role::Tar, tar)
    }

    pub(super) fn start_verification(&mut self, text: &str) -> Result<(), Cause> {
        self.verification = Verification::Goes;
        let count = self.plan.shards.get();
        let mut readers = Vec::new();
        for index in 0..count {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            let shard = (count > 1).then_some(index);
            let part = Part {
                shard: shard.map(|index| (index, count)),
                image: Some(self.image),
                parent: self.parent(),
            };
            let mut command = self.shell.command(text, part, &[0, 1]);
            command.stdin(Stdio::null()).stdout(tap.writer().map_err(Cause::System)?);
            self.holder.start(Role::ReadBack(shard), command)?;
            self.read_back.push(Some(tap));
            readers.push(read);
        }
        // A single part is a stream by itself.
        let image = if count > 1 { self.start_merge(&readers)? } else { readers.remove(0) };
        let id = self.image.to_string();
        self.holder.start_filter(Role::Extract, "image-extract", |command| {
            command.args(["--verify", "--image-id", &id]).stdin(image);
            Ok(())
        })
    }

    fn start_merge(&mut self, shards: &[OwnedFd]) -> Result<OwnedFd, Cause> {
        let Pipe { read, write } = Pipe::new().map_err(Cause::System)?;
        let shards: Vec<&OwnedFd> = shards.iter().collect();
        self.holder.start_with_shards(Role::Merge, "shard-merge", &shards, |command| {
            command.stdout(write);
            Ok(())
        })?;
        Ok(read)
    }
}
