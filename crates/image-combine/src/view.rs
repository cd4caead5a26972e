//! Whose pages rest where, after so many images of a chain.

use crate::error::Error;
use crate::image::Image;
use criu_protocol::page_server::{Layout, Memory, Origin, Run};
use criu_protocol::{Pagemap, page_size};
use std::collections::{HashMap, HashSet};
use wire_format::FileName;

/// All memory as it was at one image, by the images that have its pages.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) memories: HashMap<Memory, Pages>,
}

/// The pages of one memory.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The file that they are in, in the last image.
    pub(crate) file: FileName,
    pub(crate) pages_id: u32,
    pub(crate) layout: Layout,
    /// By address.
    pub(crate) pieces: Vec<Piece>,
}

/// Pages that rest together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Their address.
    pub(crate) start: u64,
    /// How many bytes they are.
    pub(crate) length: u64,
    /// Whether a restore may bring them when the process runs.
    pub(crate) lazy: bool,
    /// The image that has them, by its place in the chain.
    pub(crate) image: usize,
    /// The file of the image that they are in.
    pub(crate) file: FileName,
    /// Where in the file.
    pub(crate) offset: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

impl View {
    /// What is to be seen when `image`, the next one of the chain, has come.
    pub(crate) fn after(&self, index: usize, image: &Image) -> Result<View, Error> {
        let mut view = View::default();
        let mut files = HashSet::new();
        for (name, extents) in image.files.iter() {
            let Some(memory) = Memory::of_pagemap(name) else { continue };
            let wrong = |error| Error::Pagemap(image.place.clone(), name.clone(), error);
            let bytes = image.content(name, extents)?;
            let pagemap = Pagemap::decode(&bytes, page_size()).map_err(wrong)?;
            pagemap.check(page_size()).map_err(wrong)?;
            let file = pagemap.pages_file().map_err(|_| {
                Error::Pagemap(
                    image.place.clone(),
                    name.clone(),
                    criu_protocol::PagemapError::Magic,
                )
            })?;
            check_length(image, &file, &pagemap)?;
            if !files.insert(file.clone()) {
                return Err(Error::SharedPages(image.place.clone(), file));
            }
            let pieces = self.pieces(index, image, memory, &pagemap, &file)?;
            let Pagemap { pages_id, layout, .. } = pagemap;
            view.memories.insert(memory, Pages { file, pages_id, layout, pieces });
        }
        Ok(view)
    }

    fn pieces(
        &self,
        index: usize,
        image: &Image,
        memory: Memory,
        pagemap: &Pagemap,
        file: &FileName,
    ) -> Result<Vec<Piece>, Error> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        for run in &pagemap.runs {
            let length = run.bytes(page_size());
            match run.origin {
                Origin::Here { lazy } => {
                    let file = file.clone();
                    pieces.push(Piece {
                        start: run.start,
                        length,
                        lazy,
                        image: index,
                        file,
                        offset,
                    });
                    offset += length;
                }
                Origin::Parent => self
                    .cut(memory, run, &mut pieces)
                    .map_err(|start| Error::NoPages(image.place.clone(), memory, start))?,
            }
        }
        pieces.sort_by_key(|piece| piece.start);
        Ok(pieces)
    }

    /// Appends what this view has of the run; fails with the first address that it lacks.
    fn cut(&self, memory: Memory, run: &Run, pieces: &mut Vec<Piece>) -> Result<(), u64> {
        let held = self.memories.get(&memory).map_or(&[][..], |pages| &pages.pieces);
        let (mut at, end) = (run.start, run.end(page_size()));
        let first = held.partition_point(|piece| piece.end() <= at);
        for piece in held.iter().skip(first) {
            if at >= end || piece.start > at {
                break;
            }
            let to = end.min(piece.end());
            pieces.push(Piece {
                start: at,
                length: to - at,
                // CRIU itself brings what is in a parent image before the process runs. What may
                // come late is up to the mapping, which may have changed since.
                lazy: false,
                offset: piece.offset + (at - piece.start),
                ..piece.clone()
            });
            at = to;
        }
        if at < end { Err(at) } else { Ok(()) }
    }
}

fn check_length(image: &Image, file: &FileName, pagemap: &Pagemap) -> Result<(), Error> {
    let listed = pagemap.bytes_here(page_size());
    let found = image.files.get(file).map_or(0, |extents| extents.length());
    match found == listed {
        true => Ok(()),
        false => Err(Error::Length(image.place.clone(), file.clone(), found, listed)),
    }
}
