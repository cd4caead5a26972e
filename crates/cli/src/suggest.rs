//! Options that nearly exist.

/// Which of these options somebody may have meant who has written another, in their order. All
/// begin with `--`.
pub(crate) fn meant<'a>(written: &str, options: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let written = written.split('=').next().unwrap_or_default();
    match written.strip_prefix("--") {
        Some(name) if name.len() > 1 => options.filter(|option| is_near(name, option)).collect(),
        _ => Vec::new(),
    }
}

/// Whether the name is the beginning of the option's, or one of its words, or nearly the whole.
fn is_near(name: &str, option: &str) -> bool {
    let option = option.trim_start_matches('-');
    let slips = if name.len() < 5 { 1 } else { 2 };
    option.starts_with(name)
        || option.split('-').any(|word| word == name)
        || distance(name, option) <= slips
}

/// How many letters are to be added, dropped or changed to make one of the other.
fn distance(from: &str, to: &str) -> usize {
    // From what was read of `from` to each beginning of `to`.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (read, letter) in (1..).zip(from.bytes()) {
        let mut next = vec![read];
        for (pair, other) in row.windows(2).zip(to.bytes()) {
            let [without_both, without_letter] = pair else { continue };
            let changed = without_both + usize::from(letter != other);
            let added = next.last().map_or(usize::MAX, |without_other| without_other + 1);
            next.push(changed.min(without_letter + 1).min(added));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: [&str; 5] =
        ["--shards", "--shard-fds", "--filter", "--progress-fd", "--images-dir"];

    #[test]
    fn distances_count_letters() {
        let cases = [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("", "ab", 2)];
        let more = [("kitten", "sitting", 3), ("filter", "fliter", 2), ("shard", "shards", 1)];
        for (from, to, expected) in cases.into_iter().chain(more) {
            assert_eq!(distance(from, to), expected, "{from} {to}");
            assert_eq!(distance(to, from), expected, "{to} {from}");
        }
    }

    #[test]
    fn what_is_nearly_written_is_suggested() {
        let cases: [(&str, &[&str]); 10] = [
            ("--shard", &["--shards", "--shard-fds"]),
            ("--shard=4", &["--shards", "--shard-fds"]),
            ("--filters", &["--filter"]),
            ("--fliter", &["--filter"]),
            ("--progress", &["--progress-fd"]),
            ("--image-dir", &["--images-dir"]),
            ("--dir", &["--images-dir"]),
            ("--compress", &[]),
            ("-f", &[]),
            ("--", &[]),
        ];
        for (written, expected) in cases {
            assert_eq!(meant(written, OPTIONS.into_iter()), expected, "{written}");
        }
    }
}
