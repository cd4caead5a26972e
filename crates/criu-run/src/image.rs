//! Where the image is kept: whether there is one, and the commands that store and fetch it.

use crate::signals::Signals;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use supervise::family::HasEnded;
use supervise::shell::{Part, Shell};

/// How the image is stored and fetched.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) save: String,
    pub(crate) load: String,
    how_to_see: HowToSee,
}

/// What a restore reads.
pub(crate) enum Source<'a> {
    /// A file that is the image.
    File(&'a Path),
    /// A file that is the image when it is unpacked.
    CompressedFile(&'a Path),
    /// What a command writes.
    Command,
}

#[derive(Clone, Debug)]
enum HowToSee {
    /// By this file.
    File(PathBuf),
    /// By this command's status.
    Command(String),
    /// By whether there is something to load.
    Load,
}

/// Why it cannot be known whether there is an image.
#[derive(Debug)]
pub(crate) enum Unknown {
    File(PathBuf, io::Error),
    Directory(PathBuf),
    Command(&'static str, ExitStatus),
    System(&'static str, io::Error),
    /// A signal has come that asks for the end.
    Signal(Signal),
}

impl Image {
    /// An image in a file, whose path is absolute.
    pub(crate) fn in_file(path: &Path) -> Image {
        let quoted = quote(&path.to_string_lossy());
        let (pack, unpack) = compression(path).unwrap_or(("cat", "cat"));
        let directory = path.parent().unwrap_or(Path::new("/"));
        let directory = quote(&directory.to_string_lossy());
        Image {
            // The old one stays until the new one is whole and on the disk. Several copies of the
            // program may be checkpointed at once.
            save: format!(
                "new={quoted}.new.$IMAGE_ID; trap 'rm -f \"$new\"' EXIT; \
                 {pack} > \"$new\" && sync \"$new\" && mv -f \"$new\" {quoted} && sync {directory}"
            ),
            load: format!("{unpack} < {quoted}"),
            how_to_see: HowToSee::File(path.to_owned()),
        }
    }

    /// An image behind commands.
    pub(crate) fn behind(save: String, load: String, exists: Option<String>) -> Image {
        let how_to_see = exists.map_or(HowToSee::Load, HowToSee::Command);
        Image { save, load, how_to_see }
    }

    /// What a restore reads.
    pub(crate) fn source(&self) -> Source<'_> {
        match &self.how_to_see {
            HowToSee::File(path) if compression(path).is_some() => Source::CompressedFile(path),
            HowToSee::File(path) => Source::File(path),
            HowToSee::Command(_) | HowToSee::Load => Source::Command,
        }
    }

    /// Whether there is one. A signal that asks for the end is answered meanwhile.
    pub(crate) fn exists(
        &self,
        shell: &Shell,
        shards: usize,
        signals: &Signals,
    ) -> Result<bool, Unknown> {
        match &self.how_to_see {
            HowToSee::File(path) => match path.metadata() {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == ErrorKind::NotFound => match path.parent() {
                    // A disk that is not mounted has no image, but nobody knows that.
                    Some(directory) if !directory.is_dir() => {
                        Err(Unknown::Directory(directory.to_owned()))
                    }
                    _ => Ok(false),
                },
                Err(error) => Err(Unknown::File(path.clone(), error)),
            },
            HowToSee::Command(command) => {
                let mut command = shell.command(command, whole(), &[0, 1]);
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let mut asked = Asked::start("--exists", command, signals)?;
                let status = asked.end()?;
                match status.code() {
                    Some(0) => Ok(true),
                    Some(1) => Ok(false),
                    _ => Err(Unknown::Command("--exists", status)),
                }
            }
            HowToSee::Load => self.loads_something(shell, shards, signals),
        }
    }

    /// Begins to load. What writes nothing and succeeds has nothing.
    fn loads_something(
        &self,
        shell: &Shell,
        shards: usize,
        signals: &Signals,
    ) -> Result<bool, Unknown> {
        let part = Part { shard: (shards > 1).then_some((0, shards)), image: None, parent: None };
        let mut command = shell.command(&self.load, part, &[0, 1]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut asked = Asked::start("--load", command, signals)?;
        if asked.writes_something()? {
            return Ok(true);
        }
        match asked.end()? {
            status if status.success() => Ok(false),
            status => Err(Unknown::Command("--load", status)),
        }
    }
}

/// A command that is asked whether there is an image; dropped, it is ended, with all of its session.
struct Asked<'a> {
    option: &'static str,
    child: Child,
    signals: &'a Signals,
}

impl Asked<'_> {
    fn start<'a>(
        option: &'static str,
        mut command: Command,
        signals: &'a Signals,
    ) -> Result<Asked<'a>, Unknown> {
        let child = command.spawn().map_err(|error| Unknown::System(option, error))?;
        Ok(Asked { option, child, signals })
    }

    /// Whether a byte comes out of it before the end of its output.
    fn writes_something(&mut self) -> Result<bool, Unknown> {
        let Some(mut output) = self.child.stdout.take() else { return Ok(false) };
        loop {
            let is_readable = self.wait(Some(&output))?;
            match output.read(&mut [0]) {
                _ if !is_readable => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return Ok(read.map_err(|error| self.failed(error))? > 0),
            }
        }
    }

    fn end(&mut self) -> Result<ExitStatus, Unknown> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| self.failed(error))? {
                return Ok(status);
            }
            self.wait(None::<&std::process::ChildStdout>)?;
        }
    }

    /// Waits for a signal, such as that of its end, or until this can be read: then it is `true`.
    fn wait(&self, output: Option<&impl AsFd>) -> Result<bool, Unknown> {
        let is_readable = self.signals.wait_with(output).map_err(|error| self.failed(error))?;
        match self.signals.taken().into_iter().find(|signal| self.signals.asks_for_end(*signal)) {
            Some(signal) => Err(Unknown::Signal(signal)),
            None => Ok(is_readable),
        }
    }

    fn failed(&self, error: io::Error) -> Unknown {
        Unknown::System(self.option, error)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It leads a session.
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// What packs and unpacks an image in a file of this name.
fn compression(path: &Path) -> Option<(&'static str, &'static str)> {
    match path.extension()?.to_str()? {
        "zst" => Some(("zstd -q --check -c", "zstd -q -dc")),
        "lz4" => Some(("lz4 -q -c", "lz4 -q -dc")),
        "gz" => Some(("gzip -c", "gzip -dc")),
        _ => None,
    }
}

fn whole() -> Part {
    Part { shard: None, image: None, parent: None }
}

/// For a shell: everything between two quotes stands for itself.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot know whether there is an image: ")?;
        match self {
            Unknown::File(path, error) => {
                write!(f, "{}: {}", path.display(), pipe_io::reason(error))
            }
            Unknown::Directory(path) => write!(f, "{}: no such directory", path.display()),
            Unknown::Command(option, status) => {
                write!(f, "the command of {option} {}", HasEnded(*status))
            }
            Unknown::System(option, error) => {
                write!(f, "the command of {option}: {}", pipe_io::reason(error))
            }
            Unknown::Signal(signal) => write!(f, "{signal}"),
        }
    }
}

impl std::error::Error for Unknown {}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists(image: &Image) -> Result<bool, Unknown> {
        image.exists(&Shell::Sh, 1, &Signals::take(Signal::SIGTERM).unwrap())
    }

    #[test]
    fn a_name_with_quotes_is_a_name() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }

    #[test]
    fn nothing_is_known_of_a_directory_that_is_not_there() {
        let image = Image::in_file(Path::new("/no/such/directory/x.img"));
        assert!(matches!(exists(&image), Err(Unknown::Directory(_))));
    }
}
