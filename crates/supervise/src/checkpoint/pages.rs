//! CRIU's page server in the place of `--stream`, for images that build on an earlier one.

use crate::filters::lending;
use pipe_io::process;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wire_format::ImageId;

/// Where CRIU leaves the small files of an image, and which image that builds on.
#[derive(Clone, Debug)]
pub(super) struct Images {
    pub(super) directory: PathBuf,
    pub(super) before: Option<Before>,
}

/// The image before.
#[derive(Clone, Debug)]
pub(super) struct Before {
    pub(super) id: ImageId,
    /// The directory of its small files, from that of the image that builds on it.
    pub(super) directory: PathBuf,
}

/// In the scratch directory: where `criu-page-capture` listens.
const SOCKET: &str = "pages.sock";

impl Images {
    /// The arguments of `criu-page-capture`, for the image with this id.
    pub(super) fn prepare_capture(&self, command: &mut Command, scratch: &Path, id: ImageId) {
        command.arg("--images-dir").arg(&self.directory);
        command.arg("--socket").arg(scratch.join(SOCKET));
        command.args(["--image-id", &id.to_string()]);
        if let Some(before) = &self.before {
            command.args(["--parent", &before.id.to_string()]);
        }
    }

    /// The arguments of CRIU, but for the connection.
    pub(super) fn prepare_criu(&self, criu: &mut Command) {
        criu.args(["--page-server", "--track-mem", "--images-dir"]).arg(&self.directory);
        if let Some(before) = &self.before {
            criu.arg("--prev-images-dir").arg(&before.directory);
        }
    }
}

/// Has `start` start CRIU with a connection to `criu-page-capture`, which CRIU alone has then.
pub(super) fn connected<T>(
    mut criu: Command,
    scratch: &Path,
    start: impl FnOnce(Command) -> T,
) -> io::Result<T> {
    let connection = OwnedFd::from(UnixStream::connect(scratch.join(SOCKET))?);
    criu.arg("--ps-socket").arg(connection.as_raw_fd().to_string());
    lending(&[connection], || Ok(start(criu)))
}

/// Whether this CRIU says that the kernel tells which pages have changed.
pub fn tracks_memory(criu: &Path) -> bool {
    // Our caller may have had the statuses of children thrown away.
    process::keep_statuses_of_children();
    let mut check = Command::new(criu);
    check.args(["check", "--feature", "mem_dirty_track"]);
    check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    check.status().is_ok_and(|status| status.success())
}
