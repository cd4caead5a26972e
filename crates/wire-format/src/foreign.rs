//! What an image may be stored as, and must be turned back from.

use std::fmt;

/// An image that is still compressed or encrypted, by the bytes that it begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    format: &'static str,
    /// What turns it back.
    command: &'static str,
    is_encrypted: bool,
}

/// How each compressed format begins.
const COMPRESSED: [(&[u8], &str, &str); 13] = [
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4 -dc"),
    (b"\x89LZO\0", "lzop", "lzop -dc"),
    (b"LZIP", "lzip", "lzip -dc"),
    (b"\x5d\0\0", "lzma", "xz -dc"),
    (b"\x1f\x9d", "compress", "gzip -dc"),
    (b"\xff\x06\0\0sN", "snappy", "snzip -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x -so"),
];

/// How each encrypted format begins.
const ENCRYPTED: [(&[u8], &str, &str); 3] = [
    (b"age-en", "age", "age -d"),
    (b"Salted", "openssl", "openssl enc -d"),
    (b"-----B", "armoured text", "age -d or gpg -d"),
];

impl Foreign {
    /// Recognizes it by its first bytes, which are not an image's.
    pub(crate) fn of(head: &[u8]) -> Option<Foreign> {
        let find = |formats: &[(&[u8], &'static str, &'static str)], is_encrypted| {
            let found = formats.iter().find(|(magic, ..)| head.starts_with(magic));
            found.map(|(_, format, command)| Foreign { format, command, is_encrypted })
        };
        let zstd = || Foreign { format: "zstd", command: "zstd -dc", is_encrypted: false };
        let gpg = || Foreign { format: "OpenPGP", command: "gpg -d", is_encrypted: true };
        find(&COMPRESSED, false)
            .or_else(|| is_skippable(head).then(zstd))
            .or_else(|| find(&ENCRYPTED, true))
            .or_else(|| is_openpgp(head).then(gpg))
    }
}

/// A frame that decompressors skip: pzstd begins with one.
fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// An encrypted session key, as RFC 9580 has it: its packet's tag, length and version.
fn is_openpgp(head: &[u8]) -> bool {
    matches!(
        head,
        [0x84, _, 3 | 6, ..]
            | [0x85, _, _, 3 | 6, ..]
            | [0x8c, _, 4..=6, ..]
            | [0xc1, _, 3 | 6, ..]
            | [0xc1, 192..=223, _, 3 | 6, ..]
            | [0xc3, _, 4..=6, ..]
    )
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.is_encrypted { "decrypt" } else { "decompress" };
        write!(f, "this is {}: {verb} it first ({})", self.format, self.command)
    }
}
