//! Dumping: what CRIU does to a streamer.

use crate::client::Client;
use crate::image::{Image, SmallFile};
use crate::memory::Memory;
use crate::pipes::vmsplice_all;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Dumps the image, and hangs up.
///
/// CRIU lets its parasite vmsplice the memory into pipes of its own and then splices from these
/// into the image's pipe. Here the memory goes into the image's pipe at once: less work for the
/// producer, so that the streamer is what is measured.
pub(crate) fn dump(mut client: Client, image: &Image, memory: &Memory) -> io::Result<()> {
    for file in &image.small {
        send(&mut client, file)?;
    }
    let mut files: Vec<Option<OwnedFd>> = image.pages.iter().map(|_| None).collect();
    for (index, range) in image.bursts() {
        let pages = &image.pages[index];
        let file = match &mut files[index] {
            Some(file) => file,
            unopened => unopened.insert(client.open_to_write(&pages.name)?),
        };
        let is_last = range.end == pages.range.end;
        vmsplice_all(&*file, memory.bytes(range))?;
        if is_last {
            files[index] = None;
        }
    }
    send(&mut client, &image.inventory)
}

/// The memory alone, in the same order, into a pipe that nobody else has a hand in.
pub(crate) fn pour(pipe: impl AsFd, image: &Image, memory: &Memory) -> io::Result<()> {
    let bursts = image.bursts();
    bursts.into_iter().try_for_each(|(_, range)| vmsplice_all(pipe.as_fd(), memory.bytes(range)))
}

fn send(client: &mut Client, file: &SmallFile) -> io::Result<()> {
    File::from(client.open_to_write(&file.name)?).write_all(&file.content)
}
