//! What is wrong on a command line is said before anything is touched: exit
//! status 2, one line, and the filter's name in front.

use std::fs::File;
use std::io::{Seek, Write};

use tempfile::{tempdir, tempfile};
use tests::criu::pipe;
use tests::filters::files_in;
use tests::pipeline::{Filter, collect_from};
use tests::stream::read_stream;

const FILTERS: [&str; 7] = [
    "criu-sock-capture",
    "shard-split",
    "shard-merge",
    "image-serve",
    "image-extract",
    "criu-page-capture",
    "image-combine",
];

#[test]
fn every_filter_tells_its_version_and_its_options() {
    for name in FILTERS {
        let options = [("-V", name), ("--version", name), ("-h", "-p"), ("--help", "-p")];
        for (option, mentioned) in options {
            let told = Filter::new(name).arg(option).run(&[]);
            told.succeeded();
            assert!(told.stderr.is_empty(), "{name} {option}: {:?}", told.stderr);
            let text = String::from_utf8(told.stdout).expect("UTF-8");
            assert!(text.contains(mentioned), "{name} {option} says {text:?}");
        }
    }
}

/// A file that is open for reading.
fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile().expect("a file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("room");
    file
}

#[test]
fn options_have_long_names_and_take_their_value_with_or_without_equals() {
    let stream = tests::malformed::small_stream();
    let dir = tempdir().expect("a directory");
    let images_dir = format!("--images-dir={}", dir.path().display());
    for verbose in ["-v", "--verbose"] {
        let (collect, output) = pipe(None).expect("a pipe");
        let (_progress, progress_fd) = pipe(None).expect("a pipe");
        let extract = Filter::new("image-extract").args([&images_dir, verbose]);
        let extract = extract.args(["--ext-file-fds=pages-1.img:20", "--progress-fd=21"]);
        let extract = extract.fd(20, output).fd(21, progress_fd);
        let pages = collect_from(collect);
        extract.run(&stream).succeeded();
        let pages = pages.join().expect("the external file");
        assert_eq!(pages, b"some pages and more");

        let (collect, output) = pipe(None).expect("a pipe");
        let split = Filter::new("shard-split").args(["--shard-fds=10", verbose]);
        let split = split.fd(10, output).stdin(file_of(&stream)).start();
        let merge = Filter::new("shard-merge").args(["--shard-fds", "10", verbose]);
        let merged = merge.fd(10, collect).run(&[]);
        split.finish().succeeded();
        merged.succeeded();
        assert_eq!(read_stream(&merged.stdout), read_stream(&stream));
    }
}

#[test]
fn an_unknown_option_is_wrong_usage_of_every_filter() {
    for name in FILTERS {
        for option in ["--no-such-option", "-Z"] {
            Filter::new(name).arg(option).run(&[]).refused(2, option);
        }
    }
}

#[test]
fn an_option_that_nearly_exists_is_suggested() {
    let cases = [
        ("shard-split", "--shard=4", "--shard-fds or --shards"),
        ("shard-merge", "--filters=cat", "--filter"),
        ("image-serve", "--image-dir=d", "--images-dir"),
        ("image-extract", "--lst", "--list"),
        ("criu-sock-capture", "--progress=3", "--progress-fd"),
    ];
    for (name, written, meant) in cases {
        let refused = Filter::new(name).arg(written).run(&[]);
        refused.refused(2, written);
        let expected = format!("found: did you mean {meant}? (try '{name} --help')");
        assert!(refused.stderr[0].ends_with(&expected), "{:?}", refused.stderr);
    }
    let refused = Filter::new("shard-split").arg("--compress").run(&[]);
    assert!(!refused.stderr[0].contains("did you mean"), "{:?}", refused.stderr);
}

/// The commands, too, which pass on to CRIU what is none of theirs.
#[test]
fn an_option_that_lacks_a_letter_is_suggested_by_every_program() {
    // What they ask for first; there is no such process.
    let commands: [(&str, &[&str]); 5] = [
        ("criu-checkpoint", &["--tree=4194304", "--", "cat"]),
        ("criu-restore", &["--", "cat"]),
        ("criu-migrate", &["--tree=4194304", "--", "cat"]),
        ("criu-run", &["--image=x", "--", "true"]),
        ("criu-image-streamer", &[]),
    ];
    for (name, rest) in FILTERS.map(|name| (name, &[][..])).into_iter().chain(commands) {
        let help = Filter::new(name).arg("--help").run(&[]).stdout;
        let help = String::from_utf8(help).expect("UTF-8");
        // Each option begins a line, behind its short name.
        let options = help.lines().filter_map(|line| {
            let option = line.trim_start().split(' ').find(|word| !is_short(word))?;
            option.strip_prefix("--")?.split(['=', '[']).next()
        });
        // A shorter word may be anything.
        let options: Vec<_> = options.filter(|option| option.len() > 4).collect();
        assert!(options.len() > 2, "{name}: {options:?}");
        for option in options {
            let written = format!("--{}{}", &option[..1], &option[2..]);
            let refused = Filter::new(name).arg(&written).args(rest).run(&[]);
            refused.refused(2, &written);
            let said = &refused.stderr[0];
            assert!(said.contains(&format!("--{option}")), "{name} {written}: {said}");
        }
    }
}

/// `-n`, or `-n,` before a long name.
fn is_short(word: &str) -> bool {
    word.starts_with('-') && !word.starts_with("--")
}

/// The filters that speak to CRIU use the current directory, as CRIU does: see `command.rs`.
#[test]
fn image_extract_unpacks_nothing_without_a_directory() {
    Filter::new("image-extract").run(&[]).refused(2, "no arguments at all");
}

/// Options that would have no meaning are not passed over.
#[test]
fn an_option_of_another_mode_is_wrong_usage() {
    let wrong: [(&str, &[&str]); 13] = [
        ("shard-split", &["-n", "2"]),
        ("shard-split", &["-n", "2", "a", "b"]),
        ("shard-split", &["-n", "2", "-s", "11"]),
        ("shard-split", &["--filter", "cat", "a"]),
        ("shard-merge", &["-n", "2", "a", "b"]),
        ("shard-merge", &["-n", "2", "-s", "10"]),
        ("image-extract", &["--json"]),
        ("image-extract", &["--json", "-D", "."]),
        ("image-extract", &["--json", "--verify"]),
        ("image-extract", &["--sync", "--list"]),
        ("image-extract", &["--mode", "644", "--list"]),
        ("image-extract", &["--mode", "644", "--verify"]),
        ("image-extract", &["--verify", "--list"]),
    ];
    for (name, arguments) in wrong {
        let dir = tempdir().expect("a directory");
        let (read_end, _feed) = pipe(None).expect("a pipe");
        let (_collect, write_end) = pipe(None).expect("a pipe");
        let filter = Filter::new(name).args(arguments).current_dir(dir.path());
        let case = format!("{name} {}", arguments.join(" "));
        filter.fd(10, read_end).fd(11, write_end).run(&[]).refused(2, &case);
        assert!(files_in(dir.path()).is_empty(), "{case}: touched the directory");
    }
    let none = Filter::new("image-extract").run(&[]);
    none.refused(2, "no mode");
    assert!(none.stderr[0].contains("one of --images-dir, --list and --verify is needed"));
}

/// Arguments that name descriptors; 10 and 11 are pipes, 30 isn't open, 31 is a
/// terminal. `DIR` stands for the directory.
const WRONG: [(&str, &[&str], &str); 31] = [
    ("criu-sock-capture", &["-D", "DIR", "-e", "fs.tar:30"], "30"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "fs.tar:31"], "31"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "fs.tar:"], "fs.tar:"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "fs.tar"], "fs.tar"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "fs.tar:ten"], "fs.tar:ten"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "a/b:10"], "a/b"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "..:10"], ".."),
    ("criu-sock-capture", &["-D", "DIR", "-e", ":10"], ""),
    ("criu-sock-capture", &["-D", "DIR", "-e", "a:10,b:10"], "10"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "a:10", "-e", "a:11"], "a"),
    ("criu-sock-capture", &["-D", "DIR", "-p", "30"], "30"),
    ("criu-sock-capture", &["-D", "DIR", "-e", "a:10", "-p", "10"], "10"),
    ("shard-split", &["-s", "30"], "30"),
    ("shard-split", &["-s", "31"], "31"),
    ("shard-split", &["-s", "11,11"], "11"),
    ("shard-split", &["-s", "11", "-s", "11"], "11"),
    ("shard-split", &["-s", "11", "-p", "11"], "11"),
    ("shard-split", &["-s", "11", "-p", "30"], "30"),
    ("shard-split", &["-s", "eleven"], "eleven"),
    ("shard-split", &["-s", "-1"], "-1"),
    ("shard-merge", &["-s", "30"], "30"),
    ("shard-merge", &["-s", "31"], "31"),
    ("shard-merge", &["-s", "10,10"], "10"),
    ("shard-merge", &["-s", "10,,10"], ""),
    ("shard-merge", &["-s", "10", "-p", "10"], "10"),
    ("image-serve", &["-D", "DIR", "-e", "fs.tar:30"], "30"),
    ("image-serve", &["-D", "DIR", "-e", "a:11,b:11"], "11"),
    ("image-serve", &["-D", "DIR", "-p", "30"], "30"),
    ("image-extract", &["-D", "DIR", "-e", "fs.tar:30"], "30"),
    ("image-extract", &["-D", "DIR", "-e", "a:11,b:11"], "11"),
    ("image-extract", &["-D", "DIR", "-p", "30"], "30"),
];

#[test]
fn a_descriptor_that_is_closed_or_repeated_or_a_terminal_is_wrong_usage() {
    for (name, arguments, mentioned) in WRONG {
        let dir = tempdir().expect("a directory");
        let (read_end, _feed) = pipe(None).expect("a pipe");
        let (_collect, write_end) = pipe(None).expect("a pipe");
        let case = arguments.join(" ");
        let path = dir.path().to_str().expect("UTF-8");
        let arguments = arguments.iter().map(|word| if *word == "DIR" { path } else { word });
        let filter = Filter::new(name).args(arguments);
        let filter = filter.fd(10, read_end).fd(11, write_end).fd(31, terminal());
        let finished = filter.run(&[]);
        finished.refused(2, &case);
        assert!(finished.stdout.is_empty(), "{name} {case}: wrote to its output");
        assert!(finished.stderr[0].contains(mentioned), "{name} {case}: {:?}", finished.stderr);
        assert!(files_in(dir.path()).is_empty(), "{name} {case}: touched the directory");
    }
}

/// `10> image 11> image`, and the like.
#[test]
fn an_image_shares_its_place_with_no_other_output() {
    let stream = tests::malformed::small_stream();
    let image = tempfile().expect("a file");
    let again = || image.try_clone().expect("a descriptor");
    let (_collect, write_end) = pipe(None).expect("a pipe");
    let same_pipe = write_end.try_clone().expect("a descriptor");

    let split = |arguments: [&str; 4]| Filter::new("shard-split").args(arguments);
    let shards = split(["-s", "10,11", "-p", "12"]).fd(10, again()).fd(11, again());
    let shards = shards.fd(12, tempfile().expect("a file")).run(&stream);
    shards.refused(2, "two shards");
    assert!(shards.stderr[0].ends_with("shard 1 (fd 11): the same file as shard 0 (fd 10)"));
    assert_eq!(image.metadata().expect("a file").len(), 0, "something was written");
    let progress = split(["-s", "10", "-p", "11"]).fd(10, write_end).fd(11, same_pipe).run(&stream);
    progress.refused(2, "progress");
    assert!(progress.stderr[0].ends_with("progress (fd 11): the same file as shard 0 (fd 10)"));
    let null = || File::options().write(true).open("/dev/null").expect("it");
    split(["-s", "10,11", "-p", "12"])
        .fd(10, null())
        .fd(11, null())
        .fd(12, null())
        .run(&stream)
        .succeeded();
}

#[test]
fn a_terminal_is_neither_input_nor_output_for_data() {
    let dir = tempdir().expect("a directory");
    let wrong = |filter: Filter, case: &str| {
        filter.start().finish().refused(2, case);
    };
    let with_dir = |name: &str| Filter::new(name).arg("-D").arg(dir.path());
    let piped = || pipe(None).expect("a pipe");

    wrong(with_dir("criu-sock-capture").stdout(terminal()), "stdout is a terminal");
    wrong(with_dir("image-serve").stdin(terminal()), "stdin is a terminal");
    wrong(with_dir("image-extract").stdin(terminal()), "stdin is a terminal");
    for mode in ["--list", "--verify"] {
        wrong(Filter::new("image-extract").arg(mode).stdin(terminal()), mode);
    }
    let (read_end, write_end) = piped();
    let split = Filter::new("shard-split").args(["-s", "10"]).fd(10, write_end);
    wrong(split.stdin(terminal()), "stdin is a terminal");
    let merge = Filter::new("shard-merge").args(["-s", "10"]).fd(10, read_end);
    wrong(merge.stdout(terminal()), "stdout is a terminal");
    assert!(files_in(dir.path()).is_empty(), "touched the directory");
}

/// The master side of a new terminal, which is a terminal too.
fn terminal() -> File {
    File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal")
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    for name in ["criu-sock-capture", "image-serve"] {
        let finished = Filter::new(name).args(["-D", "/no/such/directory"]).run(&[]);
        assert!(matches!(finished.status.code(), Some(1 | 2)), "{name}: {}", finished.status);
        let code = finished.status.code().expect("an exit status");
        finished.refused(code, "no such directory");
        assert!(finished.stderr[0].contains("/no/such/directory"), "{:?}", finished.stderr);
    }
}
