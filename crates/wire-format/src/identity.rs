//! Which image, and which part of it, a stream belongs to.

use std::fmt;
use std::str::FromStr;

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

/// What is no image's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoImageId;

impl FromStr for ImageId {
    type Err = NoImageId;

    /// As it is printed: 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<ImageId, NoImageId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(|number| ImageId(number.to_be_bytes())).ok_or(NoImageId)
    }
}

impl fmt::Display for NoImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not 32 hexadecimal digits")
    }
}

impl std::error::Error for NoImageId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_printed() {
        let id = ImageId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        let long = "0".repeat(33);
        for text in ["", "+0000000000000000000000000000001", "00", long.as_str()] {
            assert_eq!(text.parse::<ImageId>(), Err(NoImageId), "{text}");
        }
    }
}
