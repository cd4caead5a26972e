//! The texts that users live by say what the programs do: `--help` and the man
//! pages have the same options, and every message is explained.
//!
//! That the examples work is shown by `contrib/run-examples`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tests::pipeline::Filter;

const FILTERS: [&str; 7] = [
    "criu-sock-capture",
    "shard-split",
    "shard-merge",
    "image-serve",
    "image-extract",
    "criu-page-capture",
    "image-combine",
];

/// Lines and columns of a screen, and what scrolls by without being lost.
const SCREEN: (usize, usize) = (64, 80);

/// Of the short form.
const SHORT: usize = 30;
/// The same of a command, which has more to say.
const COMMAND_SCREEN: (usize, usize) = (90, 42);
/// Words from one process of a program to another: no messages.
const WORDS: [&str; 2] = ["supervise/src/front.rs", "supervise/src/link/word.rs"];

/// What starts the filters.
const COMMANDS: [&str; 5] =
    ["criu-image-streamer", "criu-checkpoint", "criu-restore", "criu-migrate", "criu-run"];

fn programs() -> impl Iterator<Item = &'static str> {
    FILTERS.into_iter().chain(COMMANDS)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn help(name: &str, option: &str) -> String {
    let told = Filter::new(name).arg(option).run(&[]);
    told.succeeded();
    String::from_utf8(told.stdout).expect("UTF-8")
}

/// The options of a help text: `-D --images-dir DIR`.
fn options_of_help(name: &str) -> BTreeSet<String> {
    options_of_text(&help(name, "--help"))
}

fn options_of_text(help: &str) -> BTreeSet<String> {
    let options =
        help.lines().map(str::trim).filter(|line| line.starts_with('-') && !line.starts_with("- "));
    // What an option does may stand behind it, after two spaces.
    let options = options.map(|line| line.split("  ").next().unwrap_or(line));
    options.map(|line| line.replace(',', "").replace(['<', '>'], "").replace("...", "")).collect()
}

/// The options of a man page: its tags that begin with a flag.
fn options_of_page(name: &str) -> BTreeSet<String> {
    let page = read(format!("man/{name}.1")).replace("\\-", "-");
    page.lines().filter_map(|line| line.strip_prefix(".It ")).filter_map(option_of_tag).collect()
}

/// `Fl e , Fl -ext-file-fds Ar NAME : Ns Ar FD` is `-e --ext-file-fds NAME:FD`.
fn option_of_tag(tag: &str) -> Option<String> {
    let mut words = tag.split_whitespace();
    let (mut flags, mut argument) = (Vec::new(), String::new());
    while let Some(word) = words.next() {
        match word {
            "Fl" => flags.push(format!("-{}", words.next()?)),
            "Ar" | "Ns" => {}
            // What parts two flags is not of the argument.
            "," if argument.is_empty() => {}
            part => argument.push_str(part),
        }
    }
    let argument = argument.replace(",...", "");
    // One that may be left out stands close.
    let argument = if argument.starts_with("[=") { argument } else { format!(" {argument}") };
    (!flags.is_empty()).then(|| format!("{}{argument}", flags.join(" ")).trim_end().to_owned())
}

#[test]
fn help_and_man_page_have_the_same_options() {
    for name in programs() {
        assert_eq!(options_of_help(name), options_of_page(name), "{name}: --help, and the page");
    }
}

#[test]
fn options_stand_in_alphabetical_order_in_the_man_page() {
    for name in programs() {
        let page = read(format!("man/{name}.1"));
        let tags = page.lines().filter_map(|line| line.strip_prefix(".It Fl "));
        let first = |tag: &str| tag.split_whitespace().next().unwrap_or("").replace("\\-", "");
        let keys: Vec<String> = tags.map(first).collect();
        let mut sorted = keys.clone();
        sorted.sort_by_key(|key| (key.to_lowercase(), key.chars().any(char::is_lowercase)));
        assert_eq!(keys, sorted, "{name}.1");
    }
}

#[test]
fn help_fits_a_screen_and_ends_with_an_example_and_the_manual() {
    for name in programs() {
        let (short, long) = (help(name, "-h"), help(name, "--help"));
        let is_command = COMMANDS.contains(&name);
        let (all, few) = if is_command { COMMAND_SCREEN } else { (SCREEN.0, SHORT) };
        must_fit(name, &long, all);
        must_fit(name, &short, few);
        assert!(short.lines().count() < long.lines().count(), "{name}: -h is no shorter");
    }
}

fn must_fit(name: &str, help: &str, limit: usize) {
    let lines = help.lines().count();
    assert!(lines <= limit, "{name}: {lines} lines:\n{help}");
    for line in help.lines() {
        assert!(line.len() <= SCREEN.1, "{name}: too wide: {line}");
        assert_eq!(line.trim_end(), line, "{name}: ends with a space");
    }
    let (_, end) = help.split_once("\nExample").expect("an example");
    let last = end.lines().last().unwrap_or("");
    assert!(last.starts_with(&format!("Manual: {name}(1)")), "{name}: {last}");
}

/// The messages that the page of a program explains; of a library, those that the pages of the
/// filters do, or of what is built on it.
fn own_page(krate: &str) -> Vec<String> {
    let pages = programs().filter(|name| *name == krate);
    let pages: Vec<_> = match programs().any(|name| name == krate) {
        true => pages.collect(),
        false if krate == "supervise" => COMMANDS.to_vec(),
        false => FILTERS.to_vec(),
    };
    pages.into_iter().flat_map(|name| diagnostics(&format!("man/{name}.1"))).collect()
}

/// All source files of the crates, as `crate/src/…/file.rs`.
fn sources() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for krate in fs::read_dir(root().join("crates")).expect("list the crates") {
        let krate = krate.expect("list the crates");
        let name = krate.file_name().into_string().expect("UTF-8");
        let mut directories = vec![krate.path().join("src")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("list the sources") {
                let path = entry.expect("list the sources").path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    found.push((name.clone(), path));
                }
            }
        }
    }
    found
}

/// What SECURITY.md says of all of them.
#[test]
fn each_filter_s_page_tells_its_privileges_and_what_sees_a_wrong_bit() {
    for name in FILTERS {
        let page = read(format!("man/{name}.1"));
        for words in ["needs no capabilities", ".Xr zstd 1\n.Pq Fl \\-check", ".Xr lz4 1"] {
            assert!(page.contains(words), "{name}(1) does not say {words:?}");
        }
    }
}

#[test]
fn every_message_is_explained_under_diagnostics() {
    let shared = diagnostics("man/criu-stream-utils.7");
    let mut missing = Vec::new();
    for (krate, file) in sources() {
        if WORDS.iter().any(|words| file.ends_with(words)) {
            continue;
        }
        let own = own_page(&krate);
        let messages = messages(&read(&file));
        for message in messages {
            // What is only a place and the system's reason says nothing of ours.
            let pieces = pieces(&message);
            if pieces.iter().all(|piece| piece.chars().filter(|c| c.is_alphabetic()).count() < 4) {
                continue;
            }
            let explains = |tag: &&String| holds_in_order(tag, &pieces);
            if own.iter().chain(&shared).find(explains).is_none() {
                missing.push(format!("{}: {message}", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "no page explains:\n{}", missing.join("\n"));
}

/// The messages of a page that are explained: the tags of its lists of them.
fn diagnostics(page: &str) -> Vec<String> {
    let page = read(page).replace("\\\n", "").replace("\\-", "-");
    let (_, rest) = page.split_once("\n.Sh DIAGNOSTICS\n").expect("a section DIAGNOSTICS");
    let section = rest.split("\n.Sh ").next().unwrap_or("");
    section.lines().filter_map(|line| line.strip_prefix(".It ")).map(String::from).collect()
}

/// The string literals in a source file's implementations of `Display`, and what they call.
fn messages(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for implementation in source.split("fmt::Formatter<").skip(1) {
        let end = implementation.find("\n}").expect("the end of the implementation");
        let body = &implementation[..end];
        let code: Vec<&str> =
            body.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        // Quotes part code from literals.
        let literals = code.split('"').skip(1).step_by(2);
        found.extend(literals.map(|literal| {
            let lines = literal.split("\\\n").map(str::trim_start);
            lines.collect::<Vec<_>>().join("")
        }));
    }
    found
}

/// What stands between the placeholders of a format string.
fn pieces(message: &str) -> Vec<String> {
    let parts = message.split('{').enumerate();
    parts
        .map(|(n, part)| {
            let text = if n == 0 { Some(part) } else { part.split_once('}').map(|(_, text)| text) };
            text.unwrap_or("").to_owned()
        })
        .filter(|piece| !piece.is_empty())
        .collect()
}

fn holds_in_order(text: &str, pieces: &[String]) -> bool {
    let mut rest = text;
    pieces.iter().all(|piece| match rest.split_once(piece.as_str()) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}
