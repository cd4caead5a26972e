//! The two messages: `length:u32le` and a protobuf (proto2).

use prost::Message;

/// Bytes of the length field.
pub(crate) const LENGTH_FIELD: usize = 4;

/// More than any request has: a name of 255 bytes and its tag and length.
pub(crate) const REQUEST_MAX: usize = 1024;

/// CRIU wants to write or to read a file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(string, required, tag = "1")]
    pub(crate) filename: String,
}

/// The answer to a request for reading.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(bool, required, tag = "1")]
    pub(crate) exists: bool,
}

impl Reply {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut bytes = (self.encoded_len() as u32).to_le_bytes().to_vec();
        self.encode_raw(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_the_bytes_that_criu_expects() {
        assert_eq!(Reply { exists: true }.frame(), b"\x02\0\0\0\x08\x01");
        assert_eq!(Reply { exists: false }.frame(), b"\x02\0\0\0\x08\x00");
    }
}
