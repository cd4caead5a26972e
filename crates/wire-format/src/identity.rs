//! Which image, and which part of it, a stream belongs to.

use std::fmt;
use std::str::FromStr;

/// Tells the shards of one image from those of any other: 16 random bytes, printed as hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageId(pub [u8; 16]);

/// A shard's place in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 0.
    pub index: u32,
    /// How many shards make the image; more than `index`.
    pub count: u32,
}

/// A text that is not the id of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageIdError;

impl FromStr for ImageId {
    type Err = ImageIdError;

    /// From the 32 hexadecimal digits that [`ImageId`] is printed as.
    fn from_str(text: &str) -> Result<ImageId, ImageIdError> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or(ImageIdError);
        let mut id = [0; 16];
        if text.len() != 2 * id.len() {
            return Err(ImageIdError);
        }
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            // Two digits make no more than 255.
            *byte = pair.iter().try_fold(0, |sum, it| Ok(sum * 16 + digit(it)?))? as u8;
        }
        Ok(ImageId(id))
    }
}

impl fmt::Display for ImageIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the id of an image, which has 32 hexadecimal digits")
    }
}

impl std::error::Error for ImageIdError {}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_printed() {
        let id = ImageId(*b"\x00\x01\x0f\xf0\xff\xabcdefghijk\n");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "0", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(text.parse::<ImageId>(), Err(ImageIdError), "{text}");
        }
    }
}
