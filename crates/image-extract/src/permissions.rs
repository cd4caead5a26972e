//! The permissions of the files.

use nix::sys::stat::Mode;
use std::str::FromStr;

/// Who may use the files, whatever the umask is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions(pub(crate) Mode);

impl FromStr for Permissions {
    type Err = &'static str;

    /// As chmod(1) has them, in octal.
    fn from_str(text: &str) -> Result<Permissions, Self::Err> {
        const ALL: u32 = 0o777;

        // `from_str_radix` alone would take "+644".
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(bits) if digits && bits <= ALL => Ok(Permissions(Mode::from_bits_truncate(bits))),
            _ => Err("not permissions in octal, such as 644"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal_and_no_more_than_all() {
        for (text, bits) in [("644", 0o644), ("0600", 0o600), ("0", 0), ("777", 0o777)] {
            assert_eq!(text.parse(), Ok(Permissions(Mode::from_bits_truncate(bits))));
        }
        for text in ["", "rw", "+644", "-1", "888", "1000", "4755", "u=rw", "0o644"] {
            assert!(text.parse::<Permissions>().is_err(), "{text}");
        }
    }
}
