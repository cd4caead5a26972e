//! Small files of the image, before CRIU reads them.

use crate::archive;
use criu_protocol::Client;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An image that is served or unpacked. What it is asked for is to tell early what CRIU would find
/// out too; so what cannot be had is empty, and nothing waits for long.
pub(super) enum Image {
    Served(Option<Client>),
    Unpacked(PathBuf),
}

/// How long all questions may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Image {
    pub(super) fn open(directory: &Path, is_unpacked: bool) -> Image {
        match is_unpacked {
            true => Image::Unpacked(directory.to_owned()),
            false => Image::Served(Client::connect(directory, LIMIT).ok()),
        }
    }

    pub(super) fn read(&mut self, name: &str) -> Vec<u8> {
        match self {
            Image::Served(client) => {
                let read = client.as_mut().map(|client| client.read(name));
                read.and_then(Result::ok).flatten().unwrap_or_default()
            }
            Image::Unpacked(directory) => fs::read(directory.join(name)).unwrap_or_default(),
        }
    }

    /// The files that go with the tree, if the image has any.
    pub(super) fn archive(&mut self) -> Option<OwnedFd> {
        match self {
            Image::Served(client) => client.as_mut()?.open(archive::NAME).ok()?,
            Image::Unpacked(directory) => {
                File::open(directory.join(archive::NAME)).ok().map(OwnedFd::from)
            }
        }
    }
}
