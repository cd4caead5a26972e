//! The stream reader, with a source that gives what it wants. The image that it accepts is the
//! one that the tests' own reader finds, which shares no line with it.
#![no_main]

use fuzz::bounded;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use wire_format::{Body, FileName, Grammar, ReadError, StreamReader};

fuzz_target!(|bytes: &[u8]| {
    if let Some(files) = bounded(bytes, 64, || read(bytes)) {
        match tests::stream::read_stream(bytes) {
            Ok(expected) => assert_eq!(files, expected),
            // It knows nothing of groups, which protobuf has given up and still allows, and takes
            // no number that is too large, of which protobuf drops the upper bits.
            Err(cause) => {
                assert!(cause.contains("wire type") || cause.contains("too large"), "{cause}");
            }
        }
    }
});

/// Gives one to eight bytes a call, or none yet, as the bytes say.
struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let choice = self.0.iter().take(3).fold(self.0.len(), |sum, byte| sum ^ usize::from(*byte));
        if choice % 16 == 1 && buffer.len() > 1 {
            // Once: the next call wants the same and gets it.
            let (now, _) = buffer.split_at_mut(1);
            return self.0.read(now);
        }
        let length = buffer.len().min(choice % 8 + 1);
        self.0.read(&mut buffer[..length])
    }
}

fn read(bytes: &[u8]) -> Option<tests::stream::Files> {
    let mut reader = StreamReader::new(Pieces(bytes));
    let mut grammar = Grammar::default();
    let mut current: Option<FileName> = None;
    let mut open: BTreeMap<FileName, Vec<u8>> = BTreeMap::new();
    let mut files = BTreeMap::new();
    loop {
        let left = reader.get_ref().0.len();
        assert_eq!(reader.position() as usize, bytes.len() - left, "position");
        let marker = match reader.next_marker() {
            Ok(Some(marker)) => marker,
            Ok(None) => return grammar.is_complete().then_some(files),
            Err(ReadError::Io(error)) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                continue;
            }
            Err(_) => return None,
        };
        grammar.accept(&marker).ok()?;
        match marker.body {
            Body::Filename(name) => {
                open.entry(name.clone()).or_default();
                current = Some(name);
            }
            Body::FileData(length) => {
                let source = reader.get_mut();
                let (payload, rest) = source.0.split_at_checked(length as usize)?;
                open.get_mut(current.as_ref()?)?.extend_from_slice(payload);
                source.0 = rest;
                reader.advance(length.into());
            }
            Body::FileEof => {
                let name = current.take()?;
                let content = open.remove(&name)?;
                files.insert(name.as_str().to_owned(), content);
            }
            Body::ImageEof => {}
        }
    }
}
