//! Taking markers out of a stream.

use crate::{Body, Foreign, MARKER_MAX, Marker, MarkerError};
use std::fmt;
use std::io::{self, ErrorKind, Read};

const LENGTH_FIELD: usize = 4;

/// The length of the shortest valid marker that can follow those up to `last`: its length field,
/// `file_eof` or `image_eof`, and a sequence number that is not 0 and not smaller.
///
/// So many bytes may be asked for at once without touching the payload that may follow: most
/// ends of files take one call then, in the place of two.
fn frame_min(last: Option<u64>) -> usize {
    const EOF: usize = 2;
    const TAG: usize = 1;
    let seq = match last {
        None => 0,
        Some(last) => TAG + (64 - last.saturating_add(1).leading_zeros()).div_ceil(7) as usize,
    };
    LENGTH_FIELD + EOF + seq
}

/// Reads the markers of a stream, and never a byte of payload unless told to.
///
/// After a [`crate::Body::FileData`] the caller takes that many bytes out of the source itself
/// and says so with [`StreamReader::advance`]. With [`StreamReader::look_ahead`] the first of them
/// may be in the reader.
#[derive(Debug)]
pub struct StreamReader<R> {
    source: R,
    /// Bytes of the stream that were read before the marker at hand.
    position: u64,
    /// What was read: the marker at hand, as far as it has come, and what was read ahead.
    buffer: Vec<u8>,
    /// How much of the buffer is behind us.
    used: usize,
    /// How many bytes a read may ask for, whatever they are.
    ahead: usize,
    /// The sequence number of the marker before the one at hand.
    last: Option<u64>,
}

/// Why there is no next marker.
#[derive(Debug)]
pub enum ReadError {
    /// The source failed. With [`ErrorKind::WouldBlock`] nothing is lost: call again later.
    Io(io::Error),
    /// The stream ends within a marker, after so many bytes.
    Truncated(u64),
    /// What stands at this byte of the stream is not a marker.
    Marker(u64, MarkerError),
    /// It is no stream at all, or not yet.
    Foreign(Foreign),
}

impl<R: Read> StreamReader<R> {
    /// Reads from the start of a stream or of a shard.
    pub fn new(source: R) -> StreamReader<R> {
        let buffer = Vec::with_capacity(64);
        StreamReader { source, position: 0, buffer, used: 0, ahead: 0, last: None }
    }

    /// Takes the next marker for the first one of another stream, which stands behind this one.
    pub fn restart(&mut self) {
        self.last = None;
    }

    /// The next marker, or `None` when the source ends where a marker may end.
    pub fn next_marker(&mut self) -> Result<Option<Marker>, ReadError> {
        let next = self.marker();
        if matches!(next, Err(ReadError::Marker(0, _))) {
            if let Some(foreign) = Foreign::of(self.held()) {
                return Err(ReadError::Foreign(foreign));
            }
        }
        next
    }

    fn marker(&mut self) -> Result<Option<Marker>, ReadError> {
        let shortest = frame_min(self.last);
        let length = loop {
            if let Some(length) = self.held().first_chunk::<LENGTH_FIELD>() {
                break u32::from_le_bytes(*length);
            }
            if !self.fill(shortest)? {
                return self.at_end();
            }
        };
        let wanted = LENGTH_FIELD + length as usize;
        if wanted > LENGTH_FIELD + MARKER_MAX {
            return Err(ReadError::Marker(self.position, MarkerError::Oversized(length)));
        }
        while self.held().len() < wanted {
            if !self.fill(wanted)? {
                return self.at_end();
            }
        }
        let body = self.held().get(LENGTH_FIELD..wanted).unwrap_or_default();
        let marker =
            Marker::decode(body).map_err(|error| ReadError::Marker(self.position, error))?;
        if wanted < shortest {
            // Too short for a number that rises.
            return Err(ReadError::Marker(self.position, MarkerError::Repeated(marker.seq)));
        }
        self.last = Some(marker.seq);
        self.position += wanted as u64;
        self.drop_held(wanted);
        Ok(Some(marker))
    }

    /// Reads once, so that up to `wanted` bytes are held, or more where that is allowed; `false`
    /// at the end of the source.
    fn fill(&mut self, wanted: usize) -> Result<bool, ReadError> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let have = self.buffer.len();
        self.buffer.resize(wanted.max(self.ahead), 0);
        let read = loop {
            match self.source.read(self.buffer.get_mut(have..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer.truncate(have + read.as_ref().copied().unwrap_or(0));
        Ok(read.map_err(ReadError::Io)? > 0)
    }

    fn at_end(&self) -> Result<Option<Marker>, ReadError> {
        match self.held().len() as u64 {
            0 => Ok(None),
            partial => Err(ReadError::Truncated(self.position + partial)),
        }
    }
}

impl<R> StreamReader<R> {
    /// Lets the next reads ask for so many bytes at once, whatever they are: markers of small files
    /// come many at a time then, with the payload between them. With 0, as it is at first, no byte
    /// of payload is read.
    fn read_ahead(&mut self, bytes: usize) {
        self.ahead = bytes;
    }

    /// Lets the next reads ask for as much at once as is worth it behind this marker, the last one.
    /// Small files have several markers for some hundred bytes, so they are read together, with the
    /// payload between them. Where pages come, all but the first of them are left alone, to be moved
    /// and not copied.
    pub fn look_ahead(&mut self, marker: &Marker) {
        /// In bytes: a page, which holds the markers and the payload of most small files.
        const AT_ONCE: usize = 4096;

        let is_small = match marker.body {
            Body::FileData(length) => length < AT_ONCE as u32,
            Body::FileEof => true,
            Body::Filename(_) | Body::ImageEof => return,
        };
        self.read_ahead(if is_small { AT_ONCE } else { 0 });
    }

    /// What was read and is no part of a marker that was returned: payload, if the last marker has
    /// announced any, comes first. The caller takes it from here before it takes from the source.
    pub fn held(&self) -> &[u8] {
        self.buffer.get(self.used..).unwrap_or_default()
    }

    /// Drops the first of the bytes that are held. The caller has used them, and says so with
    /// [`StreamReader::advance`].
    pub fn drop_held(&mut self, bytes: usize) {
        self.used = self.used.saturating_add(bytes).min(self.buffer.len());
    }

    /// Says that the caller took `bytes` of payload out of the source.
    pub fn advance(&mut self, bytes: u64) {
        self.position += bytes;
    }

    /// How many bytes of the stream were read, the payload included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a part of a marker was read, and the rest has not come. Only without reading ahead.
    pub fn is_within_marker(&self) -> bool {
        !self.held().is_empty()
    }

    /// The source.
    pub fn get_ref(&self) -> &R {
        &self.source
    }

    /// The source, to take payload from.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => error.fmt(f),
            ReadError::Truncated(bytes) => write!(f, "truncated after {bytes} bytes"),
            ReadError::Marker(position, error) => write!(f, "byte {position}: {error}"),
            ReadError::Foreign(foreign) => foreign.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileName;

    /// Gives what it has in pieces of so many bytes, and in between would block.
    struct Trickle<'a>(&'a [u8], usize, bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let (now, later) = self.0.split_at(self.1.min(self.0.len()).min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        Marker::new(0, Body::Filename(FileName::new("a.img").unwrap())).encode(&mut bytes);
        Marker::new(1, Body::FileData(3)).encode(&mut bytes);
        bytes.extend_from_slice(b"xyz");
        Marker::new(2, Body::FileEof).encode(&mut bytes);
        Marker::new(3, Body::ImageEof).encode(&mut bytes);
        bytes
    }

    fn read_all(reader: &mut StreamReader<&[u8]>) -> Result<usize, ReadError> {
        let mut count = 0;
        while let Some(marker) = reader.next_marker()? {
            count += 1;
            if marker.body == Body::FileData(3) {
                let source = reader.get_mut();
                *source = source.strip_prefix(b"xyz").ok_or(ReadError::Truncated(0))?;
                reader.advance(3);
            }
        }
        Ok(count)
    }

    #[test]
    fn payload_is_left_in_the_source() {
        let bytes = sample();
        let mut reader = StreamReader::new(bytes.as_slice());
        assert_eq!(read_all(&mut reader).unwrap(), 4);
        assert_eq!(reader.position(), bytes.len() as u64);
    }

    #[test]
    fn payload_that_was_read_ahead_is_held() {
        let bytes = sample();
        for ahead in 1..bytes.len() + 9 {
            let mut reader = StreamReader::new(bytes.as_slice());
            reader.read_ahead(ahead);
            let mut markers = 0;
            while let Some(marker) = reader.next_marker().unwrap() {
                markers += 1;
                if marker.body == Body::FileData(3) {
                    let held = reader.held().len().min(3);
                    let mut payload = reader.held()[..held].to_vec();
                    reader.drop_held(held);
                    let (rest, source) = reader.get_ref().split_at(3 - held);
                    payload.extend_from_slice(rest);
                    *reader.get_mut() = source;
                    reader.advance(3);
                    assert_eq!(payload, b"xyz", "{ahead} bytes at once");
                }
            }
            assert_eq!((markers, reader.position()), (4, bytes.len() as u64));
        }
    }

    #[test]
    fn a_marker_may_come_in_pieces() {
        let mut bytes = Vec::new();
        Marker::new(9, Body::Filename(FileName::new("pages-1.img").unwrap())).encode(&mut bytes);
        for piece in 1..bytes.len() {
            let mut reader = StreamReader::new(Trickle(&bytes, piece, false));
            let marker = loop {
                match reader.next_marker() {
                    Err(ReadError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                    other => break other.unwrap().unwrap(),
                }
            };
            assert_eq!(marker.seq, 9);
        }
    }

    #[test]
    fn no_valid_marker_is_shorter_than_what_is_asked_for_at_once() {
        for last in [0, 126, 127, 128, 16382, 16383, 1 << 32, u64::MAX - 1] {
            let mut bytes = Vec::new();
            Marker::new(last + 1, Body::FileEof).encode(&mut bytes);
            assert_eq!(bytes.len(), frame_min(Some(last)), "after {last}");
        }
        let mut first = Vec::new();
        Marker::new(0, Body::ImageEof).encode(&mut first);
        assert_eq!(first.len(), frame_min(None));
    }

    #[test]
    fn a_number_that_falls_is_refused() {
        let mut bytes = Vec::new();
        Marker::new(1000, Body::FileEof).encode(&mut bytes);
        Marker::new(3, Body::FileEof).encode(&mut bytes);
        bytes.extend_from_slice(b"something");
        let mut reader = StreamReader::new(bytes.as_slice());
        reader.next_marker().unwrap();
        let error = reader.next_marker().unwrap_err();
        assert_eq!(error.to_string(), "byte 9: marker 3, after a later one");
    }

    #[test]
    fn every_cut_within_a_marker_is_seen() {
        let bytes = sample();
        let boundaries = [0, 4 + 7, 4 + 7 + 8 + 3, 4 + 7 + 8 + 3 + 8, bytes.len()];
        for cut in 0..bytes.len() {
            let result = read_all(&mut StreamReader::new(&bytes[..cut]));
            assert!(result.is_err() || boundaries.contains(&cut), "cut at {cut}: {result:?}");
        }
    }

    #[test]
    fn what_is_compressed_or_encrypted_is_told_by_its_first_bytes() {
        let cases: [(&[u8], &str); 12] = [
            (b"\x28\xb5\x2f\xfd\x04\x58", "this is zstd: decompress it first (zstd -dc)"),
            (b"\x50\x2a\x4d\x18\x04\0", "this is zstd: decompress it first (zstd -dc)"),
            (b"\x1f\x8b\x08\0\0\0", "this is gzip: decompress it first (gzip -dc)"),
            (b"\xfd7zXZ\0", "this is xz: decompress it first (xz -dc)"),
            (b"BZh91A", "this is bzip2: decompress it first (bzip2 -dc)"),
            (b"\x04\x22\x4d\x18\x64\x40", "this is lz4: decompress it first (lz4 -dc)"),
            (b"\x89LZO\0\r", "this is lzop: decompress it first (lzop -dc)"),
            (b"age-encryption.org/v1", "this is age: decrypt it first (age -d)"),
            (b"Salted__", "this is openssl: decrypt it first (openssl enc -d)"),
            (b"\x8c\x0d\x04\x09\x03\x02", "this is OpenPGP: decrypt it first (gpg -d)"),
            (b"\x85\x02\x0c\x03\x12\x34", "this is OpenPGP: decrypt it first (gpg -d)"),
            (b"\xff\xff\xff\xff\xff\xff", "byte 0: a marker of 4294967295 bytes, where 10240"),
        ];
        for (head, expected) in cases {
            let bytes = [head, &[0x55; 20_000]].concat();
            for ahead in [0, 4096] {
                let mut reader = StreamReader::new(bytes.as_slice());
                reader.read_ahead(ahead);
                let error = reader.next_marker().unwrap_err().to_string();
                assert!(error.starts_with(expected), "{head:x?}: {error}");
            }
        }
    }

    /// Its length would be that of a marker.
    #[test]
    fn what_could_be_a_marker_is_told_when_it_is_none() {
        let bytes = [b"\xff\x06\0\0sNaPpY".as_slice(), &[0x55; 20_000]].concat();
        let error = StreamReader::new(bytes.as_slice()).next_marker().unwrap_err();
        assert_eq!(error.to_string(), "this is snappy: decompress it first (snzip -dc)");
    }

    #[test]
    fn an_oversized_marker_is_refused_before_it_is_read() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.resize(100, 0);
        let mut reader = StreamReader::new(bytes.as_slice());
        assert!(matches!(
            reader.next_marker(),
            Err(ReadError::Marker(0, MarkerError::Oversized(u32::MAX)))
        ));
    }
}
