//! What CRIU's image files are made of, as it stands there: messages behind their lengths, and the
//! fields of a message.
//!
//! Whoever changes one field passes on all others as they are, whatever version of CRIU wrote them.
//!
//! ```
//! use criu_protocol::fields::{Field, Value, fields, put_number};
//!
//! let mut message = Vec::new();
//! put_number(&mut message, 7, 300);
//! let field = fields(&message).next().unwrap().unwrap();
//! assert_eq!((field.number, field.value, field.raw), (7, Value::Number(300), &message[..]));
//! ```

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Bytes that are no message, or none behind its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number in the message's definition.
    pub number: u64,
    /// What it says.
    pub value: Value<'a>,
    /// The field as it stands.
    pub raw: &'a [u8],
}

/// What a field says, as far as its bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, or a truth.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of a fixed size.
    Fixed,
}

/// The messages that these bytes are, each behind its length, a little-endian `u32`. After an error
/// there are no more.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    parts(bytes, |bytes| {
        let (length, rest) = bytes.split_first_chunk()?;
        rest.split_at_checked(u32::from_le_bytes(*length) as usize)
    })
}

/// Adds a message behind its length.
///
/// # Errors
///
/// If that has more than 32 bits.
pub fn put_message(out: &mut Vec<u8>, message: &[u8]) -> Result<(), Malformed> {
    let length = u32::try_from(message.len()).map_err(|_| Malformed)?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(message);
    Ok(())
}

/// The fields of a message. After an error there are no more.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    parts(message, split_field)
}

/// Adds a field that is a number.
pub fn put_number(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3 | VARINT);
    put_varint(out, value);
}

/// Adds a field that is text, bytes or a message.
pub fn put_bytes(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    put_varint(out, number << 3 | BYTES);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// What `split` takes from the beginning, again and again; it leaves the rest.
fn parts<'a, T>(
    mut bytes: &'a [u8],
    split: impl Fn(&'a [u8]) -> Option<(T, &'a [u8])>,
) -> impl Iterator<Item = Result<T, Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let part = split(bytes);
        bytes = part.as_ref().map_or(&[], |(_, rest)| rest);
        Some(part.map(|(part, _)| part).ok_or(Malformed))
    })
}

fn split_field(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, rest) = split_varint(bytes)?;
    let (value, rest) = match tag & 7 {
        VARINT => {
            let (value, rest) = split_varint(rest)?;
            (Value::Number(value), rest)
        }
        BYTES => {
            let (length, rest) = split_varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Value::Bytes(value), rest)
        }
        FIXED64 => (Value::Fixed, rest.get(8..)?),
        FIXED32 => (Value::Fixed, rest.get(4..)?),
        _ => return None,
    };
    let raw = bytes.get(..bytes.len() - rest.len())?;
    Some((Field { number: tag >> 3, value, raw }, rest))
}

fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let (varint, rest) = bytes.split_at_checked(length)?;
    let value = varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, rest))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_the_bytes_that_it_was() {
        let mut message = Vec::new();
        put_number(&mut message, 1, u64::MAX);
        put_bytes(&mut message, 2, b"abc");
        message.extend_from_slice(b"\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25\x01\x02\x03\x04");
        let found: Vec<_> = fields(&message).map(Result::unwrap).collect();
        let values = [Value::Number(u64::MAX), Value::Bytes(b"abc"), Value::Fixed, Value::Fixed];
        assert_eq!(found.iter().map(|field| field.value).collect::<Vec<_>>(), values);
        assert_eq!(found.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(found.iter().flat_map(|field| field.raw).copied().collect::<Vec<_>>(), message);
    }

    #[test]
    fn what_is_cut_is_malformed_and_the_end() {
        let mut file = Vec::new();
        put_message(&mut file, b"\x08\x01").unwrap();
        put_message(&mut file, b"\x0a\x05abc").unwrap();
        let found: Vec<_> = messages(&file).collect();
        assert_eq!(found, [Ok(&b"\x08\x01"[..]), Ok(b"\x0a\x05abc")]);
        assert_eq!(
            messages(&file[..9]).collect::<Vec<_>>(),
            [Ok(&b"\x08\x01"[..]), Err(Malformed)]
        );
        assert_eq!(fields(b"\x0a\x05abc").collect::<Vec<_>>(), [Err(Malformed)]);
        // A group, and a number without an end.
        for bad in [&b"\x0b"[..], &[0x08, 0x80], &[0x80; 11]] {
            assert_eq!(fields(bad).collect::<Vec<_>>(), [Err(Malformed)], "{bad:?}");
        }
    }
}
