//! Taking markers out of a stream.

use crate::{MARKER_MAX, Marker, MarkerError};
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

/// Reads the markers of a stream, and never a byte of payload.
///
/// After a [`crate::Body::FileData`] the caller takes that many bytes out of the source itself
/// and says so with [`StreamReader::advance`].
#[derive(Debug)]
pub struct StreamReader<R> {
    source: R,
    /// Bytes of the stream that were read before the marker at hand.
    position: u64,
    /// The marker at hand, as far as it has come.
    frame: Vec<u8>,
    /// The sequence number of the marker before it.
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
}

impl<R: Read> StreamReader<R> {
    /// Reads from the start of a stream or of a shard.
    pub fn new(source: R) -> StreamReader<R> {
        StreamReader { source, position: 0, frame: Vec::with_capacity(64), last: None }
    }

    /// Takes the next marker for the first one of another stream, which stands behind this one.
    pub fn restart(&mut self) {
        self.last = None;
    }

    /// The next marker, or `None` when the source ends where a marker may end.
    pub fn next_marker(&mut self) -> Result<Option<Marker>, ReadError> {
        let length = loop {
            if let Some(length) = self.frame.first_chunk::<LENGTH_FIELD>() {
                break u32::from_le_bytes(*length);
            }
            if !self.fill(frame_min(self.last))? {
                return self.at_end();
            }
        };
        let wanted = LENGTH_FIELD + length as usize;
        if wanted > LENGTH_FIELD + MARKER_MAX {
            return Err(ReadError::Marker(self.position, MarkerError::Oversized(length)));
        }
        while self.frame.len() < wanted {
            if !self.fill(wanted)? {
                return self.at_end();
            }
        }
        let body = self.frame.get(LENGTH_FIELD..wanted).unwrap_or_default();
        let marker =
            Marker::decode(body).map_err(|error| ReadError::Marker(self.position, error))?;
        if self.frame.len() > wanted {
            // Too short for a number that rises.
            return Err(ReadError::Marker(self.position, MarkerError::Repeated(marker.seq)));
        }
        self.last = Some(marker.seq);
        self.position += self.frame.len() as u64;
        self.frame.clear();
        Ok(Some(marker))
    }

    /// Reads once, up to `wanted` bytes of frame in all; `false` at the end of the source.
    fn fill(&mut self, wanted: usize) -> Result<bool, ReadError> {
        let have = self.frame.len();
        self.frame.resize(wanted, 0);
        let read = loop {
            match self.source.read(self.frame.get_mut(have..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.frame.truncate(have + read.as_ref().copied().unwrap_or(0));
        Ok(read.map_err(ReadError::Io)? > 0)
    }

    fn at_end(&self) -> Result<Option<Marker>, ReadError> {
        match self.frame.len() as u64 {
            0 => Ok(None),
            partial => Err(ReadError::Truncated(self.position + partial)),
        }
    }
}

impl<R> StreamReader<R> {
    /// Says that the caller took `bytes` of payload out of the source.
    pub fn advance(&mut self, bytes: u64) {
        self.position += bytes;
    }

    /// How many bytes of the stream were read, the payload included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a part of a marker was read, and the rest has not come.
    pub fn is_within_marker(&self) -> bool {
        !self.frame.is_empty()
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
        }
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, FileName};

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
