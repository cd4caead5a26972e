//! Options that a command passes on to CRIU.
//!
//! A command's own options and CRIU's stand among each other, as in `criu-checkpoint -t 1
//! --tcp-established --shards 4`. CRIU's are passed on as they are, but for three kinds: those that
//! send a part of the image elsewhere, or never end, are refused; names of files stay relative to
//! the caller's directory, and not to the one that CRIU changes to; and one that CRIU does not know
//! but that is nearly one of ours is asked about.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What CRIU is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `criu dump`.
    Dump,
    /// `criu restore`.
    Restore,
}

/// One of the command's own options: `--shards` or `-n`, and whether a value follows.
pub type OwnOption = (String, bool);

/// A command line in its three parts.
#[derive(Debug, Default)]
pub struct Split {
    /// The command's own options, and its operands if it has any.
    pub own: Vec<OsString>,
    /// CRIU's.
    pub criu: CriuOptions,
    /// What stands behind `--`, if that is there.
    pub behind: Option<Vec<OsString>>,
}

/// Options for CRIU, and what the command must know of them.
#[derive(Clone, Debug, Default)]
pub struct CriuOptions {
    /// As CRIU gets them.
    pub arguments: Vec<OsString>,
    /// `-o`.
    pub log_file: Option<PathBuf>,
    /// `-W`.
    pub work_dir: Option<PathBuf>,
    /// `-j`: the tree has the caller's terminal.
    pub shell_job: bool,
    /// `-J`: the tree is restored in a namespace that is there already.
    pub joins_namespace: bool,
    /// `-R`, `-s`.
    pub leaves_tree: bool,
    /// Words that are no options of CRIU's, nor values of such: perhaps operands.
    pub words: Vec<OsString>,
    /// Whether the next word may be the value of an option that only CRIU knows.
    open: bool,
    /// Whether the last of the arguments is such a word.
    ends_with_word: bool,
}

/// Why a command line cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// CRIU has such an option, and it does not go with a stream that is held.
    Refused(String, &'static str),
    /// CRIU has no such option, and we have one that is nearly the same.
    Near(String, String),
    /// An option without its value.
    NoValue(String),
    /// The caller's directory is not there, and a name is relative to it.
    NoDirectory(String),
}

/// How an option of CRIU's goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing follows, or only behind `=`.
    Flag,
    /// A value.
    Value,
    /// A value that is the name of a file or a directory.
    File,
    /// A value that is a program, by its name or its path.
    Script,
    /// It is not passed on.
    Refused(&'static str),
}

const ELSEWHERE: &str = "it sends the memory elsewhere, and the image would lack it";
const NO_SERVER: &str = "it is for a page server, and the image goes to the command";
const INCREMENT: &str = "an image that builds on another cannot be restored from a stream";
const OURS: &str = "criu-stream-utils chooses it";

/// CRIU's long options, their short forms, and their kinds, as CRIU 4.2.1 has them.
const KNOWN: &[(&str, Option<u8>, Kind)] = &[
    ("action-script", None, Kind::Script),
    ("address", None, Kind::Refused(NO_SERVER)),
    ("allow-uprobes", None, Kind::Flag),
    ("auto-dedup", None, Kind::Refused("it punches holes into an image that is no directory")),
    ("cgroup-dump-controller", None, Kind::Value),
    ("cgroup-props", None, Kind::Value),
    ("cgroup-props-file", None, Kind::File),
    ("cgroup-root", None, Kind::Value),
    ("cgroup-yard", None, Kind::File),
    ("config", None, Kind::File),
    ("cpu-cap", None, Kind::Flag),
    ("daemon", None, Kind::Refused(OURS)),
    ("display-stats", None, Kind::Flag),
    ("empty-ns", None, Kind::Value),
    ("enable-external-masters", None, Kind::Flag),
    ("enable-external-sharing", None, Kind::Flag),
    ("enable-fs", None, Kind::Value),
    ("evasive-devices", None, Kind::Flag),
    ("exec-cmd", None, Kind::Refused("COMMAND stands behind --; see --wait")),
    ("ext-mount-map", Some(b'M'), Kind::Value),
    ("ext-unix-sk", Some(b'x'), Kind::Flag),
    ("external", None, Kind::Value),
    ("file-locks", Some(b'l'), Kind::Flag),
    ("file-validation", None, Kind::Value),
    ("force-irmap", None, Kind::Flag),
    ("freeze-cgroup", None, Kind::Value),
    ("ghost-fiemap", None, Kind::Flag),
    ("ghost-limit", None, Kind::Value),
    ("images-dir", Some(b'D'), Kind::Refused(OURS)),
    ("inherit-fd", None, Kind::Value),
    ("irmap-scan-path", None, Kind::File),
    ("join-ns", Some(b'J'), Kind::Value),
    ("lazy-pages", None, Kind::Refused("CRIU would serve the memory itself, and never end")),
    ("leave-running", Some(b'R'), Kind::Flag),
    ("leave-stopped", Some(b's'), Kind::Flag),
    ("libdir", Some(b'L'), Kind::File),
    ("link-remap", None, Kind::Flag),
    ("log-file", Some(b'o'), Kind::File),
    ("log-pid", None, Kind::Flag),
    ("lsm-mount-context", None, Kind::Value),
    ("lsm-profile", None, Kind::Value),
    ("manage-cgroups", None, Kind::Flag),
    ("mntns-compat-mode", None, Kind::Flag),
    ("network-lock", None, Kind::Value),
    ("page-server", None, Kind::Refused(ELSEWHERE)),
    ("pidfile", None, Kind::File),
    ("port", None, Kind::Refused(NO_SERVER)),
    ("pre-dump-mode", None, Kind::Refused("it is for `criu pre-dump`")),
    ("prev-images-dir", None, Kind::Refused(INCREMENT)),
    ("ps-socket", None, Kind::Refused(NO_SERVER)),
    ("restore-detached", Some(b'd'), Kind::Flag),
    ("restore-sibling", Some(b'S'), Kind::Flag),
    ("root", Some(b'r'), Kind::File),
    ("shell-job", Some(b'j'), Kind::Flag),
    ("skip-file-rwx-check", None, Kind::Flag),
    ("skip-in-flight", None, Kind::Flag),
    ("skip-mnt", None, Kind::Value),
    ("status-fd", None, Kind::Value),
    ("stream", None, Kind::Flag),
    ("tcp-close", None, Kind::Flag),
    ("tcp-established", None, Kind::Flag),
    ("timeout", None, Kind::Value),
    ("tls", None, Kind::Refused(NO_SERVER)),
    ("tls-cacert", None, Kind::Refused(NO_SERVER)),
    ("tls-no-cn-verify", None, Kind::Refused(NO_SERVER)),
    ("track-mem", None, Kind::Flag),
    ("tree", Some(b't'), Kind::Refused(OURS)),
    ("unprivileged", None, Kind::Flag),
    ("veth-pair", None, Kind::Value),
    ("verbosity", Some(b'v'), Kind::Flag),
    ("weak-sysctls", None, Kind::Flag),
    ("work-dir", Some(b'W'), Kind::File),
];

/// Parts a command line. `own` are the command's own options.
pub fn split(
    arguments: impl IntoIterator<Item = OsString>,
    own: &[OwnOption],
) -> Result<Split, OptionError> {
    let mut split = Split::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            split.behind = Some(arguments.collect());
            break;
        }
        if let Some(takes_value) = is_own(&argument, own) {
            split.own.push(argument);
            if takes_value {
                split.own.extend(arguments.next());
            }
            continue;
        }
        split.criu.take(argument, &mut arguments, own)?;
    }
    Ok(split)
}

/// Whether it is an option of the command's own, and if so, whether its value is the next word.
fn is_own(argument: &OsStr, own: &[OwnOption]) -> Option<bool> {
    let text = argument.as_bytes();
    if text.starts_with(b"--") {
        let name = text.split(|byte| *byte == b'=').next().unwrap_or_default();
        let (_, takes_value) = own.iter().find(|(it, _)| it.as_bytes() == name)?;
        return Some(*takes_value && name.len() == text.len());
    }
    // Several letters may stand together: -vq, -n4.
    let mut rest = text.strip_prefix(b"-").filter(|letters| !letters.is_empty())?;
    // CRIU's -v4.
    if matches!(rest, [b'v', b'0'..=b'9', ..] | [b'v', b'v', ..]) {
        return None;
    }
    while let Some((letter, following)) = rest.split_first() {
        let name = [b'-', *letter];
        let (_, takes_value) = own.iter().find(|(it, _)| it.as_bytes() == name)?;
        if *takes_value {
            return Some(following.is_empty());
        }
        rest = following;
    }
    Some(false)
}

impl CriuOptions {
    /// The options without those that give the tree one of the descriptors 0, 1 and 2 of CRIU, which
    /// are not our caller's; and those: the descriptor, and what it stands for.
    pub fn without_standard_descriptors(&self) -> (Vec<OsString>, Vec<(RawFd, String)>) {
        let (mut others, mut standard) = (Vec::new(), Vec::new());
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument != "--inherit-fd" {
                others.push(argument.clone());
                continue;
            }
            let value = arguments.next();
            let text = value.and_then(|value| value.to_str()?.strip_prefix("fd["));
            let parts = text.and_then(|text| text.split_once("]:"));
            match parts.and_then(|(number, name)| Some((number.parse().ok()?, name))) {
                Some((number @ 0..=2, name)) => standard.push((number, name.to_owned())),
                _ => {
                    others.push(argument.clone());
                    others.extend(value.cloned());
                }
            }
        }
        (others, standard)
    }

    /// Where CRIU leaves its log: under `name` in `directory`, unless an option says otherwise.
    pub fn log(&self, directory: &Path, name: &str) -> PathBuf {
        let directory = self.work_dir.as_deref().unwrap_or(directory);
        self.log_file.clone().unwrap_or_else(|| directory.join(name))
    }

    /// Takes the operand of a command line that has one: the only word, or if there is none the
    /// last one, which might also be the value of the option before it.
    pub fn take_operand(&mut self) -> Option<OsString> {
        match self.words.as_slice() {
            [_] => self.words.pop(),
            [] if self.ends_with_word => self.arguments.pop(),
            _ => None,
        }
    }

    fn take(
        &mut self,
        argument: OsString,
        more: &mut impl Iterator<Item = OsString>,
        own: &[OwnOption],
    ) -> Result<(), OptionError> {
        let text = argument.as_bytes().to_vec();
        let may_be_value = std::mem::take(&mut self.open);
        self.ends_with_word = false;
        if let Some(name) = text.strip_prefix(b"--") {
            let mut parts = name.splitn(2, |byte| *byte == b'=');
            let name = parts.next().unwrap_or_default();
            let value = parts.next().map(|it| OsString::from_vec(it.to_vec()));
            let given = String::from_utf8_lossy(&text).into_owned();
            let Some((full, kind)) = long(name) else {
                self.must_not_be_near(name, own)?;
                self.open = value.is_none();
                self.arguments.push(argument);
                return Ok(());
            };
            return self.pass(given, format!("--{full}").into(), full, kind, value, more);
        }
        match text.as_slice() {
            [b'-', letter, rest @ ..] if letter.is_ascii_alphabetic() => {
                let known = KNOWN.iter().find(|(_, short, _)| *short == Some(*letter));
                let Some((full, _, kind)) = known else {
                    self.arguments.push(argument);
                    return Ok(());
                };
                let has_value = matches!(kind, Kind::Value | Kind::File | Kind::Script);
                let attached = !rest.is_empty() && has_value;
                let value = attached.then(|| OsString::from_vec(rest.to_vec()));
                let given = String::from_utf8_lossy(&text).into_owned();
                let passed = match has_value {
                    true => OsString::from(format!("--{full}")),
                    // With further letters behind it, or a number.
                    false => argument,
                };
                self.pass(given, passed, full, *kind, value, more)
            }
            _ => {
                self.ends_with_word = may_be_value;
                match may_be_value {
                    true => self.arguments.push(argument),
                    false => self.words.push(argument),
                }
                Ok(())
            }
        }
    }

    fn pass(
        &mut self,
        given: String,
        passed: OsString,
        full: &'static str,
        kind: Kind,
        value: Option<OsString>,
        more: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), OptionError> {
        match full {
            "shell-job" => self.shell_job = true,
            "join-ns" => self.joins_namespace = true,
            "leave-running" | "leave-stopped" => self.leaves_tree = true,
            _ => {}
        }
        let value = match kind {
            Kind::Refused(reason) => return Err(OptionError::Refused(given, reason)),
            Kind::Flag => {
                let mut passed = passed;
                if let Some(value) = value {
                    passed.push("=");
                    passed.push(value);
                }
                self.arguments.push(passed);
                return Ok(());
            }
            Kind::Value | Kind::File | Kind::Script => {
                value.or_else(|| more.next()).ok_or_else(|| OptionError::NoValue(given.clone()))?
            }
        };
        let value = match kind {
            Kind::Script if !is_path(&value) => value,
            Kind::File | Kind::Script => absolute(&value, &given)?.into(),
            _ => value,
        };
        match full {
            "log-file" => self.log_file = Some(value.clone().into()),
            "work-dir" => self.work_dir = Some(value.clone().into()),
            _ => {}
        }
        self.arguments.extend([passed, value]);
        Ok(())
    }

    fn must_not_be_near(&self, name: &[u8], own: &[OwnOption]) -> Result<(), OptionError> {
        let name = String::from_utf8_lossy(name).into_owned();
        let near = own.iter().filter_map(|(it, _)| it.strip_prefix("--"));
        match near.into_iter().find(|it| is_near(&name, it)) {
            Some(own) => Err(OptionError::Near(format!("--{name}"), format!("--{own}"))),
            None => Ok(()),
        }
    }
}

/// One of CRIU's long options, which may be cut short as long as it is the only one so.
fn long(name: &[u8]) -> Option<(&'static str, Kind)> {
    let name = std::str::from_utf8(name).ok()?;
    if let Some((full, _, kind)) = KNOWN.iter().find(|(full, ..)| *full == name) {
        return Some((full, *kind));
    }
    // A flag may be turned off.
    if let Some(flag) = name.strip_prefix("no-") {
        return KNOWN.iter().find(|(full, _, kind)| *full == flag && *kind == Kind::Flag).and(None);
    }
    let mut cut = KNOWN.iter().filter(|(full, ..)| !name.is_empty() && full.starts_with(name));
    match (cut.next(), cut.next()) {
        (Some((full, _, kind)), None) => Some((full, *kind)),
        // Whichever of them it is to be.
        (Some((full, _, kind @ Kind::Refused(_))), Some(_)) => Some((full, *kind)),
        _ => None,
    }
}

fn is_path(value: &OsStr) -> bool {
    value.as_bytes().contains(&b'/')
}

fn absolute(value: &OsStr, option: &str) -> Result<PathBuf, OptionError> {
    let path = Path::new(value);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let directory = env::current_dir().map_err(|_| OptionError::NoDirectory(option.to_owned()))?;
    Ok(directory.join(path))
}

/// Whether a word is a slip of the pen away from another: it begins it, or two letters are wrong.
fn is_near(word: &str, other: &str) -> bool {
    const SHORTEST: usize = 4;

    word.len() >= SHORTEST && (other.starts_with(word) || distance(word, other) <= 2)
}

/// How many letters must be put in, taken out or exchanged to make one word the other.
fn distance(word: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in word.chars().enumerate() {
        let mut next = vec![index + 1];
        for ((expected, pair), left) in other.iter().zip(row.windows(2)).zip(0..) {
            let &[diagonal, above] = pair else { continue };
            let before: usize = next.get(left).copied().unwrap_or(usize::MAX - 1);
            let exchanged = diagonal + usize::from(*expected != letter);
            next.push(exchanged.min(above + 1).min(before + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::Refused(option, reason) => write!(f, "{option} cannot be used: {reason}"),
            OptionError::Near(option, own) => {
                write!(f, "CRIU has no option {option}: is {own} meant?")
            }
            OptionError::NoValue(option) => write!(f, "{option} needs a value"),
            OptionError::NoDirectory(option) => {
                write!(f, "{option}: a relative name, and the current directory is gone")
            }
        }
    }
}

impl std::error::Error for OptionError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Result<Split, OptionError> {
        let own = [("--shards", true), ("-n", true), ("--tree", true), ("-t", true)];
        let flags = [("--quiet", false), ("-q", false), ("-v", false)];
        let own: Vec<OwnOption> =
            own.into_iter().chain(flags).map(|(name, value)| (name.to_owned(), value)).collect();
        split(line.split(' ').map(OsString::from), &own)
    }

    fn strings(words: &[OsString]) -> Vec<&str> {
        words.iter().map(|word| word.to_str().unwrap()).collect()
    }

    #[test]
    fn own_options_and_criu_s_stand_among_each_other() {
        let line = "-t 1 --tcp-established -n4 --network-lock skip -v4 --shards=2 -qv -- cat x";
        let split = parts(line).unwrap();
        assert_eq!(strings(&split.own), ["-t", "1", "-n4", "--shards=2", "-qv"]);
        let criu = ["--tcp-established", "--network-lock", "skip", "-v4"];
        assert_eq!(strings(&split.criu.arguments), criu);
        assert_eq!(strings(&split.behind.unwrap()), ["cat", "x"]);
    }

    #[test]
    fn a_value_of_criu_s_is_not_taken_for_an_option() {
        let split = parts("--external -t --ghost-limit 10M host").unwrap();
        assert_eq!(strings(&split.criu.arguments), ["--external", "-t", "--ghost-limit", "10M"]);
        assert_eq!(strings(&split.criu.words), ["host"]);
    }

    #[test]
    fn an_operand_is_the_only_word_or_the_last_one() {
        let operand = |line| {
            let mut split = parts(line).unwrap();
            let operand = split.criu.take_operand();
            (operand, strings(&split.criu.arguments).join(" "))
        };
        let host = Some(OsString::from("host"));
        assert_eq!(operand("host --external host"), (host.clone(), "--external host".into()));
        assert_eq!(operand("--new-flag host"), (host.clone(), "--new-flag".into()));
        assert_eq!(operand("--new-option x host"), (host, "--new-option x".into()));
        assert_eq!(operand("--new-option x -j").0, None);
        assert_eq!(operand("two words").0, None);
    }

    #[test]
    fn file_names_stay_relative_to_the_caller_s_directory() {
        let here = env::current_dir().unwrap();
        let split =
            parts("--pidfile app.pid -omy.log -W sub --root=/r --action-script hook").unwrap();
        let paths = [here.join("app.pid"), here.join("my.log"), here.join("sub")];
        let [pidfile, log, work] = paths.map(|path| path.to_str().unwrap().to_owned());
        let expected = [
            "--pidfile",
            &pidfile,
            "--log-file",
            &log,
            "--work-dir",
            &work,
            "--root",
            "/r",
            "--action-script",
            "hook",
        ];
        assert_eq!(strings(&split.criu.arguments), expected);
        assert_eq!(split.criu.work_dir.unwrap(), here.join("sub"));
    }

    #[test]
    fn options_that_send_the_image_elsewhere_are_refused() {
        for option in [
            "--page-server",
            "--page-serv",
            "--lazy-pages",
            "--lazy",
            "--auto-dedup",
            "--prev-images-dir",
            "--prev-images-dir=x",
            "--ps-socket",
            "--address",
            "--tls-no-cn-verify",
        ] {
            assert!(matches!(parts(option), Err(OptionError::Refused(..))), "{option}");
        }
    }

    #[test]
    fn the_standard_descriptors_are_told_from_others() {
        let line = "--inherit-fd fd[1]:pipe:[7] --inherit-fd=fd[9]:pipe:[8] --tcp-close";
        let (others, standard) = parts(line).unwrap().criu.without_standard_descriptors();
        assert_eq!(strings(&others), ["--inherit-fd", "fd[9]:pipe:[8]", "--tcp-close"]);
        assert_eq!(standard, [(1, "pipe:[7]".to_owned())]);
    }

    #[test]
    fn a_near_miss_is_asked_about() {
        for option in ["--shard", "--shads", "--sharsd", "--shard=4", "--quite"] {
            assert!(matches!(parts(option), Err(OptionError::Near(..))), "{option}");
        }
        assert!(parts("--some-new-option").is_ok());
        assert!(parts("--no-tcp-close").is_ok());
    }
}
