//! One marker, and its bytes.

use crate::{FileName, ImageId, NameError, Shard, SplitId};
use prost::Message;
use std::fmt;

/// The longest marker, in bytes without its length field. A stream that announces a longer one
/// is refused before anything is allocated for it.
pub const MARKER_MAX: usize = 10 * 1024;

/// One step of an image stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its place among the markers of the image, counted from 0.
    pub seq: u64,
    /// What it says.
    pub body: Body,
    /// The image that it belongs to; in the first marker of a stream or a shard.
    pub image_id: Option<ImageId>,
    /// The shard that it belongs to; in the first marker of a shard.
    pub shard: Option<Shard>,
    /// The image that this one is an increment of; in the first marker of a stream and of every
    /// shard.
    pub parent_id: Option<ImageId>,
    /// With the end of `inventory.img`: all files of the image have been named.
    pub all_named: bool,
}

/// What a marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The markers that follow belong to this file.
    Filename(FileName),
    /// That many payload bytes follow, for the current file.
    FileData(u32),
    /// The current file is complete.
    FileEof,
    /// The image is complete: the last marker.
    ImageEof,
}

/// Bytes that are not a marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkerError {
    /// Announced as that many bytes, more than [`MARKER_MAX`].
    Oversized(u32),
    /// Not protobuf.
    Undecodable,
    /// A sequence number that does not rise.
    Repeated(u64),
    /// None of the bodies that we know.
    NoBody,
    /// A file name that is not a path component.
    Name(NameError),
    /// An id that is not 16 bytes long, or a shard index past the count.
    Identity,
}

/// The marker as protobuf has it (docs/design.md section 3).
#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(oneof = "WireBody", tags = "2, 3, 4, 5")]
    body: Option<WireBody>,
    #[prost(bytes = "vec", tag = "100")]
    image_id: Vec<u8>,
    #[prost(uint32, tag = "101")]
    shard_index: u32,
    #[prost(uint32, tag = "102")]
    shard_count: u32,
    #[prost(bool, tag = "103")]
    all_named: bool,
    #[prost(bool, tag = "104")]
    metadata: bool,
    #[prost(bytes = "vec", tag = "105")]
    parent_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "106")]
    split_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum WireBody {
    #[prost(string, tag = "2")]
    Filename(String),
    #[prost(uint32, tag = "3")]
    FileData(u32),
    #[prost(bool, tag = "4")]
    FileEof(bool),
    #[prost(bool, tag = "5")]
    ImageEof(bool),
}

impl Marker {
    /// A marker that carries no identity.
    pub fn new(seq: u64, body: Body) -> Marker {
        Marker { seq, body, image_id: None, shard: None, parent_id: None, all_named: false }
    }

    /// Appends the marker to `out`, its length field first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let wire = Wire {
            seq: self.seq,
            body: Some(match &self.body {
                Body::Filename(name) => WireBody::Filename(name.as_str().to_owned()),
                Body::FileData(length) => WireBody::FileData(*length),
                Body::FileEof => WireBody::FileEof(true),
                Body::ImageEof => WireBody::ImageEof(true),
            }),
            image_id: id_bytes(self.image_id.map(|id| id.0)),
            shard_index: self.shard.map_or(0, |shard| shard.index),
            shard_count: self.shard.map_or(0, |shard| shard.count),
            all_named: self.all_named,
            metadata: self.shard.is_some_and(|shard| shard.metadata),
            parent_id: id_bytes(self.parent_id.map(|id| id.0)),
            split_id: id_bytes(self.shard.and_then(|shard| shard.split_id).map(|id| id.0)),
        };
        // A name has at most 255 bytes, so a marker never comes near `MARKER_MAX`, and a `Vec`
        // takes all that is written into it.
        let length = wire.encoded_len() as u32;
        out.extend_from_slice(&length.to_le_bytes());
        wire.encode_raw(out);
    }

    /// Reads a marker from its bytes, the length field not among them.
    ///
    /// Fields that we don't know are skipped.
    pub fn decode(bytes: &[u8]) -> Result<Marker, MarkerError> {
        let wire = Wire::decode(bytes).map_err(|_| MarkerError::Undecodable)?;
        let body = match wire.body {
            Some(WireBody::Filename(name)) => {
                Body::Filename(FileName::new(&name).map_err(MarkerError::Name)?)
            }
            Some(WireBody::FileData(length)) => Body::FileData(length),
            Some(WireBody::FileEof(true)) => Body::FileEof,
            Some(WireBody::ImageEof(true)) => Body::ImageEof,
            Some(WireBody::FileEof(false) | WireBody::ImageEof(false)) | None => {
                return Err(MarkerError::NoBody);
            }
        };
        let image_id = id(&wire.image_id)?.map(ImageId);
        let split_id = id(&wire.split_id)?.map(SplitId);
        let parent_id = id(&wire.parent_id)?.map(ImageId);
        let shard = match (wire.shard_index, wire.shard_count) {
            (0, 0) => None,
            (index, count) if index < count => {
                Some(Shard { index, count, split_id, metadata: wire.metadata })
            }
            _ => return Err(MarkerError::Identity),
        };
        Ok(Marker { seq: wire.seq, body, image_id, shard, parent_id, all_named: wire.all_named })
    }
}

fn id_bytes(id: Option<[u8; 16]>) -> Vec<u8> {
    id.map_or_else(Vec::new, |id| id.to_vec())
}

/// 16 bytes, or none where the field is absent.
fn id(bytes: &[u8]) -> Result<Option<[u8; 16]>, MarkerError> {
    match bytes {
        [] => Ok(None),
        id => id.try_into().map(Some).map_err(|_| MarkerError::Identity),
    }
}

impl fmt::Display for MarkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MarkerError::Oversized(length) => {
                write!(f, "a marker of {length} bytes, where {MARKER_MAX} are allowed")
            }
            MarkerError::Undecodable => f.write_str("a marker that cannot be decoded"),
            MarkerError::Repeated(seq) => write!(f, "marker {seq}, after a later one"),
            MarkerError::NoBody => f.write_str("a marker of an unknown kind"),
            MarkerError::Name(error) => error.fmt(f),
            MarkerError::Identity => {
                f.write_str("a marker with an invalid image or shard identity")
            }
        }
    }
}

impl std::error::Error for MarkerError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(marker: &Marker) -> Vec<u8> {
        let mut out = Vec::new();
        marker.encode(&mut out);
        out
    }

    fn name(name: &str) -> Body {
        Body::Filename(FileName::new(name).unwrap())
    }

    #[test]
    fn markers_are_the_bytes_that_criu_image_streamer_writes() {
        let cases: [(Body, &[u8]); 4] = [
            (name("a.img"), b"\x09\0\0\0\x08\x01\x12\x05a.img"),
            (Body::FileData(2900), b"\x05\0\0\0\x08\x01\x18\xd4\x16"),
            (Body::FileEof, b"\x04\0\0\0\x08\x01\x20\x01"),
            (Body::ImageEof, b"\x04\0\0\0\x08\x01\x28\x01"),
        ];
        for (body, expected) in cases {
            assert_eq!(bytes(&Marker::new(1, body)), expected);
        }
        assert_eq!(bytes(&Marker::new(0, Body::FileEof)), b"\x02\0\0\0\x20\x01");
    }

    #[test]
    fn a_marker_comes_back_as_it_was_written() {
        let identities = [None, Some(ImageId([7; 16])), None];
        let split_id = Some(SplitId([9; 16]));
        let metadata = Shard { index: 0, count: 1, split_id, metadata: true };
        let shards = [None, Some(metadata), Some(Shard::new(2, 3))];
        for body in [name("pages-1.img"), Body::FileData(u32::MAX), Body::FileEof, Body::ImageEof] {
            for seq in [0, 1, u64::MAX] {
                for (image_id, shard) in identities.into_iter().zip(shards) {
                    let parent_id = shard.and(image_id);
                    let all_named = seq == 1;
                    let body = body.clone();
                    let marker = Marker { seq, body, image_id, shard, parent_id, all_named };
                    assert_eq!(Marker::decode(&bytes(&marker)[4..]), Ok(marker));
                }
            }
        }
    }

    #[test]
    fn fields_of_the_future_are_skipped() {
        assert_eq!(
            Marker::decode(b"\x08\x05\x20\x01\xa2\x1f\x03abc"),
            Ok(Marker::new(5, Body::FileEof))
        );
    }

    #[test]
    fn what_is_no_marker_is_refused() {
        assert_eq!(Marker::decode(b""), Err(MarkerError::NoBody));
        assert_eq!(Marker::decode(b"\x08\x05"), Err(MarkerError::NoBody));
        assert_eq!(Marker::decode(b"\x20\x00"), Err(MarkerError::NoBody));
        assert_eq!(Marker::decode(b"\xff\xff"), Err(MarkerError::Undecodable));
        assert_eq!(Marker::decode(b"\x12\x02\xff\xfe"), Err(MarkerError::Undecodable));
        assert!(matches!(Marker::decode(b"\x12\x02.."), Err(MarkerError::Name(_))));
        assert_eq!(Marker::decode(b"\x20\x01\xa2\x06\x01x"), Err(MarkerError::Identity));
        assert_eq!(Marker::decode(b"\x20\x01\xca\x06\x01x"), Err(MarkerError::Identity));
        assert_eq!(Marker::decode(b"\x20\x01\xd2\x06\x01x"), Err(MarkerError::Identity));
        assert_eq!(Marker::decode(b"\x20\x01\xa8\x06\x04\xb0\x06\x04"), Err(MarkerError::Identity));
    }
}
