//! Restoring: what CRIU asks of a streamer. Every byte is checked.

use crate::Error;
use crate::client::Client;
use crate::image::{Image, PagesFile, SmallFile};
use crate::memory::{PAGE, is_page};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// What a consumer reads at once. It is checked while it is in the processor's cache.
const BUFFER: usize = 256 << 10;

/// Restores the image, and hangs up. The inventory comes first; some files don't exist, and the
/// small ones are asked for before the memory, as CRIU does it.
pub(crate) fn restore(mut client: Client, image: &Image) -> Result<(), Error> {
    check_small(&mut client, &image.inventory)?;
    if client.open_to_read("no-such-file.img")?.is_some() {
        return Err("a file exists that isn't in the image".into());
    }
    image.small.iter().try_for_each(|file| check_small(&mut client, file))?;
    image.pages.iter().try_for_each(|file| check_pages_file(&mut client, file))
}

/// Reads pages until the end of the pipe.
pub(crate) fn check_pages(pipe: OwnedFd, pages: Range<usize>) -> Result<(), Error> {
    let mut pipe = File::from(pipe);
    let mut buffer = vec![0; BUFFER];
    let (mut filled, mut next) = (0, pages.start);
    loop {
        let read = pipe.read(&mut buffer[filled..])?;
        filled += read;
        let whole = filled - filled % PAGE;
        for page in buffer[..whole].chunks_exact(PAGE) {
            if next >= pages.end || !is_page(page, next) {
                return Err(format!("page {next} is damaged").into());
            }
            next += 1;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
        if read == 0 {
            break;
        }
    }
    match (filled, next) {
        (0, next) if next == pages.end => Ok(()),
        _ => Err(format!("the pages end after {next} of {pages:?}").into()),
    }
}

fn check_pages_file(client: &mut Client, file: &PagesFile) -> Result<(), Error> {
    let pipe = client.open_to_read(&file.name)?.ok_or_else(|| missing(&file.name))?;
    check_pages(pipe, file.range.clone()).map_err(|error| format!("{}: {error}", file.name).into())
}

fn check_small(client: &mut Client, file: &SmallFile) -> Result<(), Error> {
    let pipe = client.open_to_read(&file.name)?.ok_or_else(|| missing(&file.name))?;
    let mut content = Vec::new();
    File::from(pipe).read_to_end(&mut content)?;
    match content == file.content {
        true => Ok(()),
        false => Err(format!("{} is damaged", file.name).into()),
    }
}

fn missing(name: &str) -> Error {
    format!("{name} isn't in the image").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use std::io::Write;

    fn check(bytes: &[u8]) -> Result<(), Error> {
        let (read, write) = crate::pipes::pipe().unwrap();
        File::from(write).write_all(bytes).unwrap();
        check_pages(read, 0..3)
    }

    #[test]
    fn pages_that_are_missing_or_too_many_or_torn_are_seen() {
        let memory = Memory::new(4);
        assert!(check(memory.bytes(0..3)).is_ok());
        assert!(check(memory.bytes(0..2)).is_err());
        assert!(check(memory.bytes(0..4)).is_err());
        assert!(check(memory.bytes(1..4)).is_err());
        assert!(check(&memory.bytes(0..3)[1..]).is_err());
        assert!(check(&memory.bytes(0..3)[..3 * PAGE - 1]).is_err());
    }
}
