//! One image: where each of its files rests.

use crate::error::Error;
use crate::hold::Store;
use cli::{Counters, PayloadError, Place, StreamInput};
use std::collections::{HashMap, HashSet};
use std::io;
use wire_format::{Body, FileName, ImageId, Marker};

/// An image that was read to its end.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) place: Place,
    pub(crate) id: Option<ImageId>,
    pub(crate) files: Files,
    pub(crate) store: Store,
}

/// The files of an image, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Files {
    order: Vec<FileName>,
    by_name: HashMap<FileName, Extents>,
}

/// Where the bytes of a file are in the store, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extents {
    pieces: Vec<Extent>,
    length: u64,
}

/// Bytes that stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where in the file they begin.
    pub(crate) in_file: u64,
    /// Where in the store they begin.
    pub(crate) in_store: u64,
    pub(crate) length: u64,
}

impl Files {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FileName, &Extents)> {
        self.order.iter().filter_map(|name| Some((name, self.get(name)?)))
    }

    pub(crate) fn get(&self, name: &FileName) -> Option<&Extents> {
        self.by_name.get(name)
    }

    /// The file of this name, which is made if it is not there.
    fn entry(&mut self, name: &FileName) -> &mut Extents {
        self.by_name.entry(name.clone()).or_insert_with(|| {
            self.order.push(name.clone());
            Extents::default()
        })
    }
}

impl Extents {
    /// The length of the file, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn add(&mut self, in_store: u64, length: u64) {
        if length == 0 {
            return;
        }
        match self.pieces.last_mut() {
            Some(last) if last.in_store + last.length == in_store => last.length += length,
            _ => self.pieces.push(Extent { in_file: self.length, in_store, length }),
        }
        self.length += length;
    }

    /// Where in the store these bytes of the file are, piece by piece.
    pub(crate) fn find(&self, start: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = start + length;
        let first = self.pieces.partition_point(|piece| piece.in_file + piece.length <= start);
        let pieces = self.pieces.iter().skip(first).take_while(move |piece| piece.in_file < end);
        pieces.map(move |piece| {
            let from = start.max(piece.in_file);
            let to = end.min(piece.in_file + piece.length);
            (piece.in_store + (from - piece.in_file), to - from)
        })
    }
}

impl Image {
    /// Reads an image, whose first marker was read. What cannot be read again is put into `store`.
    pub(crate) fn read(
        place: Place,
        input: &mut StreamInput,
        first: Marker,
        store: Store,
        counters: &Counters,
    ) -> Result<Image, Error> {
        let id = first.image_id;
        let mut reading = Reading { store, files: Files::default(), open: HashSet::new() };
        let mut current: Option<FileName> = None;
        let mut next = Some(first);
        loop {
            let before = input.position();
            let marker = match next.take() {
                Some(marker) => marker,
                None => input.next_marker()?,
            };
            match (marker.body, current.take()) {
                (Body::Filename(name), _) => {
                    reading.begin(&name);
                    current = Some(name);
                }
                (Body::FileData(length), Some(name)) => {
                    reading.data(&name, length.into(), input)?;
                    current = Some(name);
                }
                (Body::FileEof, Some(name)) => reading.end(&name),
                (Body::ImageEof, _) => break,
                // `StreamInput` refuses markers that belong to no file.
                (Body::FileData(_) | Body::FileEof, None) => {}
            }
            counters.add(0, input.position() - before);
        }
        Ok(Image { place, id, files: reading.files, store: reading.store })
    }

    /// The content of a file.
    pub(crate) fn content(&self, name: &FileName, extents: &Extents) -> Result<Vec<u8>, Error> {
        let failed = |error| Error::Read(self.place.clone(), name.clone(), error);
        let mut bytes = Vec::new();
        for (mut offset, length) in extents.find(0, extents.length()) {
            // Not by the file's own place: the next image may be read from there.
            let end = offset + length;
            while offset < end {
                let mut piece = [0; 4096];
                let (window, _) = piece.split_at_mut((end - offset).min(4096) as usize);
                let read = self.store.endpoint().read_at(window, offset).map_err(failed)?;
                if read == 0 {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                bytes.extend(window.iter().take(read));
                offset += read as u64;
            }
        }
        Ok(bytes)
    }
}

/// An image on its way.
struct Reading {
    store: Store,
    files: Files,
    /// Those that have not ended.
    open: HashSet<FileName>,
}

impl Reading {
    /// Begins a file, or goes on with it.
    fn begin(&mut self, name: &FileName) {
        if self.open.insert(name.clone()) {
            // If there was one of this name before, it does not count.
            *self.files.entry(name) = Extents::default();
        }
    }

    fn end(&mut self, name: &FileName) {
        self.open.remove(name);
    }

    fn data(&mut self, name: &FileName, length: u64, input: &mut StreamInput) -> Result<(), Error> {
        let extents = self.files.entry(name);
        if !self.store.is_memory() {
            extents.add(input.skip_payload(length)?, length);
            return Ok(());
        }
        let start = self.store.place(extents.length());
        self.store.endpoint().seek(start).map_err(Error::Hold)?;
        let mut left = length;
        while left > 0 {
            left -=
                input.move_payload(self.store.endpoint(), left).map_err(|error| match error {
                    PayloadError::Input(error) => Error::Input(error),
                    PayloadError::Output(error) => Error::Hold(error),
                })?;
        }
        self.store.filled(start + length);
        extents.add(start, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_across_pieces() {
        let mut extents = Extents::default();
        for (in_store, length) in [(100, 10), (110, 10), (500, 5), (0, 0), (700, 100)] {
            extents.add(in_store, length);
        }
        let find = |start, length| extents.find(start, length).collect::<Vec<_>>();
        assert_eq!(extents.length(), 125);
        assert_eq!(find(0, 125), [(100, 20), (500, 5), (700, 100)]);
        assert_eq!(find(19, 3), [(119, 1), (500, 2)]);
        assert_eq!(find(25, 1), [(700, 1)]);
        assert_eq!(find(20, 5), [(500, 5)]);
        assert_eq!(find(7, 0), []);
    }
}
