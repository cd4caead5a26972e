//! The command line, as CRIU has it.

use std::path::PathBuf;

use crate::Fault;

/// What is to be done, and how.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) verb: String,
    pub(crate) images_dir: PathBuf,
    pub(crate) work_dir: Option<PathBuf>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) tree: Option<i32>,
    pub(crate) scripts: Vec<String>,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) stream: bool,
    pub(crate) page_server: Option<i32>,
    pub(crate) before: Option<PathBuf>,
    pub(crate) leave_running: bool,
    pub(crate) detached: bool,
}

/// Options without a value that are taken, and change nothing here.
const IGNORED: [&str; 10] = [
    "--page-server",
    "--track-mem",
    "--restore-sibling",
    "-S",
    "--tcp-established",
    "--tcp-close",
    "--shell-job",
    "-j",
    "--file-locks",
    "--display-stats",
];

/// Options with a value that change nothing here.
const IGNORED_WITH_VALUE: [&str; 7] = [
    "--feature",
    "--network-lock",
    "--external",
    "--inherit-fd",
    "--ghost-limit",
    "--root",
    "--join-ns",
];

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Options, Fault> {
        let mut options = Options::default();
        let mut words = arguments.iter().flat_map(|word| parts(word)).peekable();
        options.verb = words.next().ok_or("no action")?;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("option '{word}' requires an argument"));
            match word.as_str() {
                "-D" | "--images-dir" => options.images_dir = value()?.into(),
                "-W" | "--work-dir" => options.work_dir = Some(value()?.into()),
                "-o" | "--log-file" => options.log_file = Some(value()?.into()),
                "-t" | "--tree" => options.tree = Some(value()?.parse()?),
                "--action-script" => options.scripts.push(value()?),
                "--pidfile" => options.pidfile = Some(value()?.into()),
                "--stream" => options.stream = true,
                "--ps-socket" => options.page_server = Some(value()?.parse()?),
                "--prev-images-dir" => options.before = Some(value()?.into()),
                "-R" | "--leave-running" => options.leave_running = true,
                "-d" | "--restore-detached" => options.detached = true,
                word if word.starts_with("-v") => {}
                word if IGNORED.contains(&word) => {}
                word if IGNORED_WITH_VALUE.contains(&word) => drop(value()?),
                _ => return Err(format!("unrecognized option '{word}'").into()),
            }
        }
        Ok(options)
    }

    /// Where relative names of files begin.
    pub(crate) fn work_dir(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| self.images_dir.clone())
    }
}

/// `--name=value` is two words.
fn parts(word: &str) -> Vec<String> {
    match word.split_once('=').filter(|_| word.starts_with("--")) {
        Some((name, value)) => vec![name.to_owned(), value.to_owned()],
        None => vec![word.to_owned()],
    }
}
