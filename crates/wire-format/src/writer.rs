//! Putting markers into a stream.

use crate::{Body, FileName, ImageId, Marker};
use std::io::{self, Write};

/// Numbers the markers of a stream and writes as many as it can with one call.
///
/// Markers are collected until [`StreamWriter::flush`]. The payload that a marker announces is
/// put into the sink by the caller, after a flush; a little of it may be collected with them.
#[derive(Debug)]
pub struct StreamWriter<W> {
    sink: W,
    next_seq: u64,
    image_id: Option<ImageId>,
    parent_id: Option<ImageId>,
    current: Option<FileName>,
    pending: Vec<u8>,
    written: u64,
}

impl<W: Write> StreamWriter<W> {
    /// Starts a stream. The identity will stand in its first marker.
    pub fn new(sink: W, image_id: Option<ImageId>) -> StreamWriter<W> {
        StreamWriter {
            sink,
            next_seq: 0,
            image_id,
            parent_id: None,
            current: None,
            pending: Vec::new(),
            written: 0,
        }
    }

    /// Makes the file the current one, if it isn't.
    pub fn file(&mut self, name: &FileName) -> io::Result<()> {
        if self.current.as_ref() == Some(name) {
            return Ok(());
        }
        self.current = Some(name.clone());
        self.marker(Body::Filename(name.clone()))
    }

    /// Announces `length` bytes of the file. The caller flushes and then writes them.
    pub fn data(&mut self, name: &FileName, length: u32) -> io::Result<()> {
        self.file(name)?;
        self.marker(Body::FileData(length))
    }

    /// Ends the file.
    pub fn file_eof(&mut self, name: &FileName) -> io::Result<()> {
        self.file(name)?;
        self.current = None;
        self.marker(Body::FileEof)
    }

    /// Ends `inventory.img`, and says that all files of the image have been named.
    pub fn file_eof_all_named(&mut self, name: &FileName) -> io::Result<()> {
        self.file(name)?;
        self.current = None;
        self.put(Body::FileEof, true)
    }

    /// Ends the image. Nothing may follow.
    pub fn image_eof(&mut self) -> io::Result<()> {
        self.marker(Body::ImageEof)
    }

    /// Adds payload that was announced, to go with the markers.
    pub fn payload(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        self.flush_if_large()
    }

    /// Writes what was collected.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.sink.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }

    /// Adds a marker of another stream, renumbered. The caller sees to it that files keep their
    /// markers, and flushes before it writes the payload that the marker announces.
    pub fn marker(&mut self, body: Body) -> io::Result<()> {
        self.put(body, false)
    }

    /// The same with a marker that may say that all files have been named.
    pub fn put(&mut self, body: Body, all_named: bool) -> io::Result<()> {
        let (image_id, parent_id) = (self.image_id.take(), self.parent_id.take());
        let payload = if let Body::FileData(length) = body { length.into() } else { 0 };
        let before = self.pending.len();
        Marker { image_id, parent_id, all_named, ..Marker::new(self.next_seq, body) }
            .encode(&mut self.pending);
        self.next_seq += 1;
        self.written += (self.pending.len() - before) as u64 + payload;
        self.flush_if_large()
    }

    fn flush_if_large(&mut self) -> io::Result<()> {
        // Half a page: so much costs one slot of a pipe, and is gone before it grows.
        const PENDING_MAX: usize = 2048;

        if self.pending.len() > PENDING_MAX { self.flush() } else { Ok(()) }
    }
}

impl<W> StreamWriter<W> {
    /// Gives the stream an identity, as long as it has no marker.
    pub fn identify(&mut self, image_id: ImageId) {
        if self.next_seq == 0 {
            self.image_id = Some(image_id);
        }
    }

    /// Makes the stream an increment of that image, as long as it has no marker.
    pub fn descend_from(&mut self, parent_id: ImageId) {
        if self.next_seq == 0 {
            self.parent_id = Some(parent_id);
        }
    }

    /// The length of the stream so far, with the payload that was announced, in bytes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The sink.
    pub fn get_ref(&self) -> &W {
        &self.sink
    }

    /// The sink, to put payload into.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.sink
    }

    /// Gives the sink back. Markers that were not flushed are dropped.
    pub fn into_inner(self) -> W {
        self.sink
    }
}
