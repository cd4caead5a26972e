//! The files of an image: where they come from and go to, and what is in them.

use std::fs;
use std::io::Write;

use tests::criu::{DumpClient, RestoreClient};

use crate::Fault;
use crate::options::Options;

/// Where the files of a dump go.
#[derive(Debug)]
pub(crate) enum Writer {
    Stream(DumpClient),
    Directory(std::path::PathBuf),
}

impl Writer {
    pub(crate) fn open(options: &Options) -> Result<Writer, Fault> {
        Ok(match options.stream {
            true => Writer::Stream(
                DumpClient::connect(&options.images_dir)
                    .map_err(|error| format!("Unable to connect to image streamer: {error}"))?,
            ),
            false => Writer::Directory(options.images_dir.clone()),
        })
    }

    /// Writes a file; `half_way` is called in the middle of it.
    pub(crate) fn write(
        &mut self,
        name: &str,
        content: &[u8],
        half_way: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut file = match self {
            Writer::Stream(client) => client.open(name)?,
            Writer::Directory(directory) => fs::File::create(directory.join(name))?,
        };
        let (first, second) = content.split_at(content.len() / 2);
        file.write_all(first).map_err(|error| format!("Can't write {name}: {error}"))?;
        half_way()?;
        file.write_all(second).map_err(|error| format!("Can't write {name}: {error}"))?;
        Ok(())
    }
}

/// Where the files of a restore come from.
#[derive(Debug)]
pub(crate) enum Reader {
    Stream(RestoreClient),
    Directory(std::path::PathBuf),
}

impl Reader {
    pub(crate) fn open(options: &Options) -> Result<Reader, Fault> {
        Ok(match options.stream {
            true => Reader::Stream(
                RestoreClient::connect(&options.images_dir)
                    .map_err(|error| format!("Unable to connect to image streamer: {error}"))?,
            ),
            false => Reader::Directory(options.images_dir.clone()),
        })
    }

    /// A whole file; `None` if the image has none of this name.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        match self {
            Reader::Stream(client) => Ok(client.read(name)?),
            Reader::Directory(directory) => match fs::read(directory.join(name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                read => Ok(Some(read?)),
            },
        }
    }

    /// A file that the image must have.
    pub(crate) fn need(&mut self, name: &str) -> Result<Vec<u8>, Fault> {
        self.read(name)?.ok_or_else(|| format!("No {name} image").into())
    }
}

/// The magic number that all images begin with, and the one of `inventory.img`.
const IMAGE: u32 = 0x5456_4319;
const INVENTORY: u32 = 0x5831_3116;
const PSTREE: u32 = 0x5027_3030;

/// `inventory.img`: nothing is looked at but its form.
pub(crate) fn inventory() -> Vec<u8> {
    [&INVENTORY.to_le_bytes()[..], &3_u32.to_le_bytes(), b"all"].concat()
}

/// `pstree.img` of one process.
pub(crate) fn pstree(pid: i32) -> Vec<u8> {
    // pid = 1, ppid = 2, pgid = 3, sid = 4.
    let mut entry = Vec::new();
    for (field, value) in [(1, pid), (2, 0), (3, pid), (4, pid)] {
        entry.push(field << 3);
        varint(value as u32, &mut entry);
    }
    let length = (entry.len() as u32).to_le_bytes();
    [&IMAGE.to_le_bytes()[..], &PSTREE.to_le_bytes(), &length, &entry].concat()
}

fn varint(mut value: u32, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
