//! Which image, and which part of it, a stream belongs to.

use std::fmt;

/// Tells the shards of one image from those of any other: 16 random bytes, printed as hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageId(pub [u8; 16]);

/// Tells the shards of one split from those of another split of the same image: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SplitId(pub [u8; 16]);

/// A shard's place in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 0.
    pub index: u32,
    /// How many shards make the image; more than `index`.
    pub count: u32,
    /// The split that has made the set; `None` in images of versions that did not say so.
    pub split_id: Option<SplitId>,
    /// Whether it is the metadata shard, which holds the small files and names the others.
    pub metadata: bool,
}

impl Shard {
    /// A shard that says no more than its place.
    pub fn new(index: u32, count: u32) -> Shard {
        Shard { index, count, split_id: None, metadata: false }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
