//! The firewall rules by which CRIU itself holds a tree's network still.
//!
//! CRIU locks the network of a namespace before it saves the rules, so that `nftables-N.img` holds
//! the lock too, with `--network-lock nftables` and wherever `iptables` is the one on nftables. It
//! comes back with the rules, and goes when the tree runs: meanwhile it keeps packets from
//! connections that are not whole yet. A tree that has none does not need it. Seen with CRIU 4.2.1,
//! iptables 1.8.9 and nftables 1.0.6.

/// The mark of packets that the lock lets through, CRIU's own.
const MARK: &str = "0x0000c114";

/// Whose rules are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    /// The table `filter`, where iptables has its chains.
    Filter,
    /// Of the table `filter`: CRIU's chain.
    Lock,
    /// Of the table `filter`: a chain of iptables, which leads to CRIU's.
    Jump,
    /// A table of CRIU's own, by `--network-lock nftables`.
    Table,
    /// A chain of that.
    TableChain,
}

/// Whether a rule set, as `nft list ruleset` prints it, lets every packet pass but for CRIU's lock.
pub fn is_only_network_lock(rules: &[u8]) -> bool {
    let Ok(rules) = std::str::from_utf8(rules) else { return false };
    let mut place = Place::Outside;
    for line in rules.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words = without_counter(line);
        if words.is_empty() {
            continue;
        }
        let Some(next) = after(place, &words) else { return false };
        place = next;
    }
    place == Place::Outside
}

/// Where the next line belongs; `None` if this one is nobody's lock.
fn after(place: Place, words: &[&str]) -> Option<Place> {
    Some(match (place, words) {
        (Place::Outside, ["table", "ip" | "ip6", "filter", "{"]) => Place::Filter,
        (Place::Outside, ["table", "inet", name, "{"]) if is_table_of_criu(name) => Place::Table,
        (Place::Filter, ["chain", "CRIU", "{"]) => Place::Lock,
        (Place::Filter, ["chain", "INPUT" | "OUTPUT" | "FORWARD", "{"]) => Place::Jump,
        (Place::Table, ["chain", "input" | "output", "{"]) => Place::TableChain,
        (Place::Lock | Place::Jump, ["}"]) => Place::Filter,
        (Place::TableChain, ["}"]) => Place::Table,
        (Place::Filter | Place::Table, ["}"]) => Place::Outside,
        (Place::Lock, ["meta", "mark", MARK, "accept"] | ["drop"]) => place,
        (Place::Jump, ["jump", "CRIU"]) => place,
        (Place::Jump, ["type", "filter", "hook", _, "priority", _, "policy", "accept;"]) => place,
        (Place::TableChain, ["meta", "mark", MARK, "accept"]) => place,
        (Place::TableChain, ["type", "filter", "hook", _, "priority", _, "policy", "drop;"]) => {
            place
        }
        _ => return None,
    })
}

/// The words of a line but `counter packets N bytes N`.
fn without_counter(line: &str) -> Vec<&str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.iter().position(|word| *word == "counter") {
        Some(at) if words.get(at + 1) == Some(&"packets") && words.len() >= at + 5 => {
            let (before, after) = words.split_at(at);
            before.iter().chain(after.iter().skip(5)).copied().collect()
        }
        _ => words,
    }
}

/// It is named by the id of the run, as much of it as fits.
fn is_table_of_criu(name: &str) -> bool {
    let is_of_id = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    name.strip_prefix("CRIU-").is_some_and(|id| id.bytes().all(is_of_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_IPTABLES: &str = "table ip filter {
\tchain CRIU {
\t\tmeta mark 0x0000c114 counter packets 0 bytes 0 accept
\t\tcounter packets 17 bytes 1020 drop
\t}

\tchain INPUT {
\t\ttype filter hook input priority filter; policy accept;
\t\tcounter packets 0 bytes 0 jump CRIU
\t}

\tchain OUTPUT {
\t\ttype filter hook output priority filter; policy accept;
\t\tcounter packets 0 bytes 0 jump CRIU
\t}
}
";
    const BY_NFTABLES: &str = "table inet CRIU-3b13d2db-9a6a-4dff-94 {
\tchain output {
\t\ttype filter hook output priority filter; policy drop;
\t\tmeta mark 0x0000c114 accept
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tmeta mark 0x0000c114 accept
\t}
}
";

    #[test]
    fn the_lock_is_nothing_of_the_trees() {
        let both = BY_IPTABLES.to_owned() + &BY_IPTABLES.replace("ip filter", "ip6 filter");
        let warned = format!("# Warning: table ip filter is managed by iptables-nft\n{both}");
        for rules in ["", BY_IPTABLES, BY_NFTABLES, &both, &warned] {
            assert!(is_only_network_lock(rules.as_bytes()), "{rules}");
        }
    }

    #[test]
    fn any_other_rule_is() {
        let changes = [
            ("table ip filter", "table ip nat"),
            ("table inet CRIU-3b13d2db-9a6a-4dff-94", "table inet mine"),
            ("chain CRIU", "chain MINE"),
            ("jump CRIU", "jump MINE"),
            ("policy accept", "policy drop"),
            ("policy drop", "policy accept"),
            ("0x0000c114", "0x0000c115"),
            ("packets 17 bytes 1020 drop", "packets 17 bytes 1020 log drop"),
            (
                "counter packets 17 bytes 1020 drop",
                "tcp dport 22 counter packets 17 bytes 1020 drop",
            ),
        ];
        for (from, to) in changes {
            let rules: Vec<String> = [BY_IPTABLES, BY_NFTABLES]
                .iter()
                .filter(|rules| rules.contains(from))
                .map(|rules| rules.replacen(from, to, 1))
                .collect();
            assert!(!rules.is_empty(), "{from}");
            for rules in rules {
                assert!(!is_only_network_lock(rules.as_bytes()), "{rules}");
            }
        }
        for rules in
            [&BY_IPTABLES.as_bytes()[..BY_IPTABLES.len() - 2], b"table ip t {\n}\n", b"\xff"]
        {
            assert!(!is_only_network_lock(rules));
        }
    }
}
