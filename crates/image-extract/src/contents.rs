//! Listing and verifying: the image is read to its end, and its files go nowhere.

use crate::error::Error;
use crate::extract::nowhere;
use crate::walk::{Visitor, walk};
use crate::{Args, NAME};
use cli::{Counters, Descriptors, Failure, Place, Program, StreamInput};
use pipe_io::inherit::Direction;
use pipe_io::{Bytes, Endpoint, Patient};
use serde::Serialize;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use wire_format::{FileName, ImageId};

/// `image-extract --list`
pub(crate) fn list(args: &Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    descriptors.print()?;
    let (contents, _) = read(args, descriptors)?;
    let text = if args.json { contents.json() } else { contents.lines() };
    let written = Patient(io::stdout()).write_all(text.as_bytes());
    written.map_err(|error| Failure::Failed(Error::Stdout(error)))
}

/// `image-extract --verify`
pub(crate) fn verify(args: &Args) -> Result<(), Failure<Error>> {
    let (contents, id) = read(args, Descriptors::default())?;
    if let Some(wanted) = args.image_id.filter(|wanted| id != Some(*wanted)) {
        return Err(Failure::Failed(Error::AnotherImage(wanted, id)));
    }
    let bytes: u64 = contents.files.iter().map(|file| file.size).sum();
    let program = Program::new(NAME, args.common.verbose);
    let files = contents.files.len();
    let bytes = Bytes(bytes);
    match contents.parent_id {
        None => program.note(format_args!("the image is whole: {files} files, {bytes}")),
        Some(parent) => program
            .note(format_args!("the increment of image {parent} is whole: {files} files, {bytes}")),
    }
    Ok(())
}

fn read(
    args: &Args,
    mut descriptors: Descriptors,
) -> Result<(Contents, Option<ImageId>), Failure<Error>> {
    let stdin = descriptors.take(&Place::Stdin, Direction::Input)?;
    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    let read = || {
        program.attend_signals(&counters).map_err(Error::System)?;
        program.confine();
        let mut contents = Contents {
            image_id: None,
            parent_id: None,
            files: Vec::new(),
            places: HashMap::new(),
            nowhere: nowhere().map_err(Error::System)?,
        };
        let input = StreamInput::new(Place::Stdin, stdin).or_increment();
        let id = walk(input, &counters, &mut contents)?;
        Ok((contents, id))
    };
    read().map_err(Failure::Failed)
}

/// The files of an image, in the order in which they began.
struct Contents {
    image_id: Option<ImageId>,
    /// Of an increment: the image that it builds on.
    parent_id: Option<ImageId>,
    files: Vec<File>,
    /// Where in `files` each name is.
    places: HashMap<FileName, usize>,
    nowhere: Endpoint,
}

#[derive(Serialize)]
struct File {
    #[serde(serialize_with = "as_str")]
    name: FileName,
    /// In bytes.
    size: u64,
    /// Whether it is complete.
    #[serde(skip)]
    ended: bool,
}

#[derive(Serialize)]
struct Listing<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    files: &'a [File],
}

fn as_str<S: serde::Serializer>(name: &FileName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

impl Contents {
    fn lines(&self) -> String {
        self.files.iter().map(|file| format!("{:>12} {}\n", file.size, file.name)).collect()
    }

    fn json(&self) -> String {
        let listing = Listing {
            image_id: self.image_id.map(|id| id.to_string()),
            parent_id: self.parent_id.map(|id| id.to_string()),
            files: &self.files,
        };
        // Names and numbers in a struct: this has no way to fail.
        let json = serde_json::to_string(&listing).unwrap_or_default();
        json + "\n"
    }

    fn get_mut(&mut self, name: &FileName) -> Option<&mut File> {
        self.files.get_mut(*self.places.get(name)?)
    }
}

impl Visitor for Contents {
    fn image(&mut self, image_id: Option<ImageId>, parent_id: Option<ImageId>) {
        (self.image_id, self.parent_id) = (image_id, parent_id);
    }

    fn file(&mut self, name: &FileName) -> Result<(), Error> {
        match self.get_mut(name) {
            None => {
                self.places.insert(name.clone(), self.files.len());
                self.files.push(File { name: name.clone(), size: 0, ended: false });
            }
            // The earlier file of this name does not count.
            Some(file) if file.ended => (file.size, file.ended) = (0, false),
            Some(_) => {}
        }
        Ok(())
    }

    fn sink(&mut self, _: &FileName) -> Result<&Endpoint, Error> {
        Ok(&self.nowhere)
    }

    fn took(&mut self, name: &FileName, bytes: u64) {
        if let Some(file) = self.get_mut(name) {
            file.size += bytes;
        }
    }

    fn failed(&self, _: &FileName, error: io::Error) -> Error {
        Error::System(error)
    }

    fn end(&mut self, name: &FileName) -> Result<(), Error> {
        if let Some(file) = self.get_mut(name) {
            file.ended = true;
        }
        Ok(())
    }
}
