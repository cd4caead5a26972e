//! The options that several filters share.

use crate::Place;
use pipe_io::inherit::{self, Direction, Refusal};
use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;
use wire_format::FileName;

/// The options that every filter has.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Reporting")]
pub struct CommonArgs {
    /// Write progress lines to FD [2]
    #[arg(short, long, value_name = "FD", default_value = "2", hide_default_value = true)]
    pub progress_fd: Fd,

    /// Say more on stderr; on a terminal, show the rate
    #[arg(short, long)]
    pub verbose: bool,
}

/// The command of the filters that speak to CRIU.
#[derive(Clone, Debug, clap::Args)]
pub struct CommandArgs {
    /// Start this when CRIU may connect; wait for it
    ///
    /// It runs without standard input, and its output goes to stderr. Its
    /// failure is the filter's, and its exit status too.
    #[arg(last = true, value_name = "COMMAND", help_heading = "Command", verbatim_doc_comment)]
    pub command: Vec<OsString>,
}

/// A descriptor's number on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub RawFd);

impl FromStr for Fd {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Fd, Self::Err> {
        // `parse` alone would take "+3".
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits => Ok(Fd(number)),
            _ => Err("not a file descriptor's number"),
        }
    }
}

/// Where a command writes its result as a line of JSON: the descriptor of `--json-fd`, or 1 with
/// `--json`. A descriptor that cannot be written to is refused.
pub fn result_to(json: bool, json_fd: Option<Fd>) -> Result<Option<OwnedFd>, (RawFd, Refusal)> {
    let number = json_fd.map(|fd| fd.0).or(json.then_some(1));
    let open = |fd| inherit::duplicate(fd, Direction::Output).map_err(|refusal| (fd, refusal));
    number.map(open).transpose()
}

/// `NAME:FD`: a file that is not CRIU's, and where it is read from or written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalFile {
    /// Its name in the image.
    pub name: FileName,
    /// The descriptor.
    pub fd: RawFd,
}

impl ExternalFile {
    /// Its name in messages.
    pub fn place(&self) -> Place {
        Place::External { name: self.name.clone(), fd: self.fd }
    }
}

impl FromStr for ExternalFile {
    type Err = String;

    /// The name may hold a colon: the last one counts.
    fn from_str(text: &str) -> Result<ExternalFile, String> {
        let (name, fd) = text.rsplit_once(':').ok_or("not of the form NAME:FD")?;
        let name = FileName::new(name).map_err(|error| error.to_string())?;
        Ok(ExternalFile { name, fd: fd.parse::<Fd>()?.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_colon_parts_name_and_descriptor() {
        let file: ExternalFile = "a:b.tar:20".parse().unwrap();
        assert_eq!((file.name.as_str(), file.fd), ("a:b.tar", 20));
    }

    #[test]
    fn what_is_no_external_file_is_refused() {
        for text in ["", "fs.tar", "fs.tar:", ":3", "a/b:3", "fs.tar:x", "fs.tar:-1", "fs.tar:+1"] {
            assert!(text.parse::<ExternalFile>().is_err(), "{text}");
        }
    }
}
