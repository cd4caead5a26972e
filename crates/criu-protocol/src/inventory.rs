//! Whether `inventory.img` is whole.
//!
//! The file is the mark of a dump that succeeded, so it must not be one that CRIU was killed in
//! the middle of.

/// Whether these bytes can be a whole inventory: not empty, and if they begin with the magic
/// number of CRIU's, they go on with entries behind their lengths, and end with one.
pub fn is_whole(bytes: &[u8]) -> bool {
    const MAGIC: [u8; 4] = 0x5831_3116_u32.to_le_bytes();

    match bytes.strip_prefix(&MAGIC) {
        Some(rest) => !rest.is_empty() && are_entries(rest),
        None => !MAGIC.starts_with(bytes),
    }
}

fn are_entries(mut bytes: &[u8]) -> bool {
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        match rest.get(u32::from_le_bytes(*length) as usize..) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    bytes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_an_inventory_is_seen() {
        let whole = b"\x16\x31\x31\x58\x03\0\0\0abc";
        assert!(is_whole(whole));
        for cut in 0..whole.len() {
            assert!(!is_whole(&whole[..cut]), "cut at {cut}");
        }
    }
}
