//! The files of an image: where they come from and go to, and what is in them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use tests::criu::{DumpClient, RestoreClient};
use tests::page_server::{Layout, PAGE, PRESENT, PageClient};

use crate::Fault;
use crate::options::Options;

/// Where the files of a dump go.
#[derive(Debug)]
pub(crate) enum Writer {
    Stream(DumpClient),
    Directory(PathBuf),
    Pages(Pages),
}

impl Writer {
    pub(crate) fn open(options: &Options) -> Result<Writer, Fault> {
        if let Some(number) = options.page_server {
            return Ok(Writer::Pages(Pages::open(number, options)?));
        }
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
            Writer::Directory(directory) | Writer::Pages(Pages { directory, .. }) => {
                fs::File::create(directory.join(name))?
            }
        };
        let (first, second) = content.split_at(content.len() / 2);
        file.write_all(first).map_err(|error| format!("Can't write {name}: {error}"))?;
        half_way()?;
        file.write_all(second).map_err(|error| format!("Can't write {name}: {error}"))?;
        Ok(())
    }
}

/// An image of which the memory goes to a page server.
#[derive(Debug)]
pub(crate) struct Pages {
    client: PageClient,
    directory: PathBuf,
    /// The memory at the dump before.
    before: Option<Vec<u8>>,
}

/// In an images directory: the memory, in the place of a kernel that tells which pages have changed.
const MEMORY: &str = "stand-in.memory";
/// What the memory's number on the wire is.
const TASK: u64 = 1 << 8 | 1;
/// Where the memory begins.
const START: u64 = 0x10_0000;

impl Pages {
    fn open(number: i32, options: &Options) -> Result<Pages, Fault> {
        let directory = options.images_dir.clone();
        let mut before = None;
        if let Some(parent) = &options.before {
            before = Some(fs::read(directory.join(parent).join(MEMORY))?);
            std::os::unix::fs::symlink(parent, directory.join("parent"))?;
        }
        Ok(Pages { client: PageClient::inherited(number, Layout::Long), directory, before })
    }

    /// Sends memory, page by page; `half_way` is called in the middle of it.
    pub(crate) fn send(
        &mut self,
        memory: &[u8],
        half_way: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut memory = memory.to_vec();
        memory.resize(memory.len().next_multiple_of(PAGE), 0);
        let is_held = self.client.open(TASK)? == 1;
        let pages: Vec<&[u8]> = memory.chunks(PAGE).collect();
        let before = self.before.take().filter(|_| is_held);
        let mut half_way = Some(half_way);
        for (number, page) in pages.iter().enumerate() {
            if let Some(half_way) = half_way.take_if(|_| number >= pages.len() / 2) {
                half_way()?;
            }
            let place = number * PAGE;
            let start = START + place as u64;
            match before.as_ref().and_then(|it| it.get(place..place + PAGE)) == Some(page) {
                true => self.client.unchanged(TASK, start, 1)?,
                false => self.client.pages(TASK, start, PRESENT, page)?,
            }
        }
        match self.client.close()? {
            0 => Ok(fs::write(self.directory.join(MEMORY), &memory)?),
            answer => Err(format!("the page server answers {answer}").into()),
        }
    }
}

/// Where the files of a restore come from.
#[derive(Debug)]
pub(crate) enum Reader {
    Stream(RestoreClient),
    Directory(PathBuf),
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
