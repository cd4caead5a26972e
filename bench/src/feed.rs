//! Images as a decompressor brings them: written from memory into shards.

use crate::image::Image;
use crate::memory::{Memory, PAGE};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use wire_format::{Body, FileName, ImageId, Marker, Shard};

/// The bytes of one shard, most of which are in the [`Memory`]. A copy of them in one piece would
/// double what the benchmark needs.
#[derive(Debug, Default)]
pub(crate) struct Feed<'a> {
    markers: Vec<u8>,
    pieces: Vec<Piece<'a>>,
}

#[derive(Debug)]
enum Piece<'a> {
    Markers(Range<usize>),
    Payload(&'a [u8]),
}

/// Bytes of memory between two markers: what capture moves at once with pipes of 1 MiB.
const CHUNK: usize = 1 << 20;

/// The image in `shards` shards, chunk by chunk in turn.
pub(crate) fn shards<'a>(
    image: &'a Image,
    memory: &'a Memory,
    shards: usize,
) -> io::Result<Vec<Feed<'a>>> {
    let mut writer = Writer {
        feeds: (0..shards).map(|_| Feed::default()).collect(),
        seq: 0,
        current: 0,
        file: None,
    };
    for file in &image.small {
        writer.file(&file.name, &file.content)?;
    }
    for (index, range) in image.bursts() {
        let file = &image.pages[index];
        let is_last = range.end == file.range.end;
        writer.data(&file.name, memory.bytes(range))?;
        if is_last {
            writer.eof(&file.name)?;
        }
    }
    writer.file(&image.inventory.name, &image.inventory.content)?;
    writer.marker(Body::ImageEof);
    Ok(writer.feeds)
}

/// The memory alone, for the pipe with nothing behind it.
pub(crate) fn bare<'a>(image: &Image, memory: &'a Memory) -> Feed<'a> {
    let pieces = image.pages.iter().map(|file| Piece::Payload(memory.bytes(file.range.clone())));
    Feed { markers: Vec::new(), pieces: pieces.collect() }
}

struct Writer<'a> {
    feeds: Vec<Feed<'a>>,
    seq: u64,
    current: usize,
    file: Option<String>,
}

impl<'a> Writer<'a> {
    fn file(&mut self, name: &str, content: &'a [u8]) -> io::Result<()> {
        self.data(name, content)?;
        self.eof(name)
    }

    fn data(&mut self, name: &str, content: &'a [u8]) -> io::Result<()> {
        for chunk in content.chunks(CHUNK) {
            self.name(name)?;
            self.marker(Body::FileData(chunk.len() as u32));
            self.feeds[self.current].pieces.push(Piece::Payload(chunk));
            if chunk.len() >= PAGE {
                self.current = (self.current + 1) % self.feeds.len();
            }
        }
        Ok(())
    }

    fn eof(&mut self, name: &str) -> io::Result<()> {
        self.name(name)?;
        self.file = None;
        self.marker(Body::FileEof);
        Ok(())
    }

    fn name(&mut self, name: &str) -> io::Result<()> {
        if self.file.as_deref() != Some(name) {
            self.file = Some(name.to_owned());
            self.marker(Body::Filename(FileName::new(name).map_err(io::Error::other)?));
        }
        Ok(())
    }

    fn marker(&mut self, body: Body) {
        let (index, count) = (self.current as u32, self.feeds.len() as u32);
        let feed = &mut self.feeds[self.current];
        let mut marker = Marker::new(self.seq, body);
        self.seq += 1;
        if feed.pieces.is_empty() {
            marker.image_id = Some(ImageId([7; 16]));
            marker.shard = (count > 1).then(|| Shard::new(index, count));
        }
        let start = feed.markers.len();
        marker.encode(&mut feed.markers);
        let end = feed.markers.len();
        match feed.pieces.last_mut() {
            Some(Piece::Markers(range)) => range.end = end,
            _ => feed.pieces.push(Piece::Markers(start..end)),
        }
    }
}

impl Feed<'_> {
    /// Writes all of it, 128 KiB a call as most decompressors do. What is in one call comes from
    /// several places, and leaves the pipe as if it came from one.
    pub(crate) fn write_to(&self, mut output: impl Write) -> io::Result<()> {
        const AT_ONCE: usize = 128 << 10;

        let mut batch: Vec<&[u8]> = Vec::new();
        let mut room = AT_ONCE;
        for piece in &self.pieces {
            let mut bytes = match piece {
                Piece::Markers(range) => &self.markers[range.clone()],
                Piece::Payload(bytes) => bytes,
            };
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(room));
                batch.push(now);
                room -= now.len();
                bytes = later;
                if room == 0 || batch.len() == 1000 {
                    write_all(&mut output, &mut batch)?;
                    room = AT_ONCE;
                }
            }
        }
        write_all(&mut output, &mut batch)
    }
}

fn write_all(output: &mut impl Write, batch: &mut Vec<&[u8]>) -> io::Result<()> {
    let mut slices: Vec<_> = batch.drain(..).map(IoSlice::new).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match output.write_vectored(left) {
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Shape;
    use wire_format::{Grammar, StreamReader};

    #[test]
    fn one_shard_is_a_whole_stream() {
        let memory = Memory::new(1000);
        for shape in [Shape::Process, Shape::Tree, Shape::SmallFiles] {
            let image = shape.image(&memory);
            let mut stream = Vec::new();
            shards(&image, &memory, 1).unwrap()[0].write_to(&mut stream).unwrap();
            let mut reader = StreamReader::new(stream.as_slice());
            let mut grammar = Grammar::default();
            let mut bytes = 0;
            while let Some(marker) = reader.next_marker().unwrap() {
                grammar.accept(&marker).unwrap();
                if let Body::FileData(length) = marker.body {
                    let source = reader.get_mut();
                    *source = &source[length as usize..];
                    reader.advance(length.into());
                    bytes += u64::from(length);
                }
            }
            assert!(grammar.is_complete());
            assert_eq!(bytes, image.bytes(), "{shape:?}");
        }
    }
}
