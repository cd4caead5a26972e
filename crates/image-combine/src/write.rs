//! The whole image.

use crate::chain::Chain;
use crate::error::Error;
use crate::image::Image;
use crate::view::{Pages, Piece};
use cli::{SourceError, StreamOutput};
use criu_protocol::page_server::{Memory, Origin, Run};
use criu_protocol::{INVENTORY, Pagemap, page_size};
use std::collections::HashSet;
use std::io::ErrorKind;
use wire_format::FileName;

/// What one marker announces at most, in bytes. Each takes a slot of the pipe, and pages that come
/// one at a time from many places should not all have one.
const PIECE: u64 = 256 << 20;

/// Writes the files of the last image, with all of its memory, `inventory.img` last.
pub(crate) fn write(chain: &Chain, output: &mut StreamOutput) -> Result<(), Error> {
    let Some(last) = chain.images.last() else { return Ok(()) };
    let pages: HashSet<_> = chain.view.memories.values().map(|pages| &pages.file).collect();
    let (inventory, others): (Vec<_>, Vec<_>) =
        last.files.iter().partition(|(name, _)| name.as_str() == INVENTORY);
    for (name, extents) in others.into_iter().chain(inventory) {
        if let Some(memory) = Memory::of_pagemap(name) {
            let Some(pages) = chain.view.memories.get(&memory) else { continue };
            write_pages(chain, pages, output)?;
            write_pagemap(name, pages, output)?;
        } else if !pages.contains(name) {
            let parts: Vec<_> = extents.find(0, extents.length()).collect();
            let parts = parts.into_iter().map(|part| (last, name, part));
            write_data(name, parts, output)?;
            output.file(name)?;
            output.file_eof(name)?;
        }
    }
    Ok(())
}

fn write_pages(chain: &Chain, pages: &Pages, output: &mut StreamOutput) -> Result<(), Error> {
    let parts = pages.pieces.iter().flat_map(|piece| {
        let image = chain.images.get(piece.image);
        let found = image.and_then(|image| Some((image, image.files.get(&piece.file)?)));
        found.into_iter().flat_map(move |(image, extents)| {
            extents.find(piece.offset, piece.length).map(move |part| (image, &piece.file, part))
        })
    });
    write_data(&pages.file, parts, output)?;
    output.file(&pages.file)?;
    output.file_eof(&pages.file)?;
    Ok(())
}

fn write_pagemap(name: &FileName, pages: &Pages, output: &mut StreamOutput) -> Result<(), Error> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in &pages.pieces {
        let Piece { start, length, lazy, .. } = *piece;
        let origin = Origin::Here { lazy };
        let count = length / page_size();
        match runs.last_mut() {
            Some(last) if last.end(page_size()) == start && last.origin == origin => {
                last.pages += count;
            }
            _ => runs.push(Run { start, pages: count, origin }),
        }
    }
    let pagemap = Pagemap { pages_id: pages.pages_id, runs, layout: pages.layout };
    output.bytes(name, &pagemap.encode())?;
    output.file_eof(name)?;
    Ok(())
}

/// Bytes of a file of an image: where they are in its store, and how many.
type Part<'a> = (&'a Image, &'a FileName, (u64, u64));

/// Writes what is in these places, one after the other.
fn write_data<'a>(
    name: &FileName,
    parts: impl Iterator<Item = Part<'a>>,
    output: &mut StreamOutput,
) -> Result<(), Error> {
    let mut announced: Vec<Part<'a>> = Vec::new();
    let mut bytes = 0;
    for (image, file, (mut offset, mut length)) in parts {
        while length > 0 {
            let part = length.min(PIECE - bytes);
            announced.push((image, file, (offset, part)));
            (offset, length, bytes) = (offset + part, length - part, bytes + part);
            if bytes == PIECE || announced.len() >= PARTS_MAX {
                write_announced(name, &mut announced, &mut bytes, output)?;
            }
        }
    }
    write_announced(name, &mut announced, &mut bytes, output)
}

/// So many places are noted at once.
const PARTS_MAX: usize = 16 << 10;

fn write_announced(
    name: &FileName,
    parts: &mut Vec<Part<'_>>,
    bytes: &mut u64,
    output: &mut StreamOutput,
) -> Result<(), Error> {
    // Not more than `PIECE`.
    let total = *bytes as u32;
    if total > 0 {
        output.data(name, total)?;
    }
    let mut left = total;
    for (image, file, (offset, length)) in parts.drain(..) {
        let failed = |error| Error::Read(image.place.clone(), file.clone(), error);
        let store = image.store.endpoint();
        store.seek(offset).map_err(failed)?;
        let after = left - length as u32;
        while left > after {
            left -= output.some_payload_of(store, total, left, left - after).map_err(|error| {
                match error {
                    SourceError::Output(error) => Error::Output(error),
                    SourceError::Source(_, error) => {
                        failed(error.unwrap_or(ErrorKind::UnexpectedEof.into()))
                    }
                }
            })?;
        }
    }
    *bytes = 0;
    Ok(())
}
