//! Going through an image, file by file.

use crate::error::Error;
use cli::{Counters, PayloadError, StreamInput};
use pipe_io::Endpoint;
use wire_format::{Body, FileName, ImageId};

/// What becomes of the files of an image.
pub(crate) trait Visitor {
    /// The image is this one, and an increment of that one.
    fn image(&mut self, _image_id: Option<ImageId>, _parent_id: Option<ImageId>) {}

    /// A file begins, or goes on after others.
    fn file(&mut self, name: &FileName) -> Result<(), Error>;

    /// Where data of the file that was begun last goes.
    fn sink(&mut self, name: &FileName) -> Result<&Endpoint, Error>;

    /// So many bytes of the file have gone there.
    fn took(&mut self, name: &FileName, bytes: u64);

    /// What it means that data cannot go there.
    fn failed(&self, name: &FileName, error: std::io::Error) -> Error;

    /// The file is complete. If its name comes again, the later one counts.
    fn end(&mut self, name: &FileName) -> Result<(), Error>;
}

/// Goes through a whole image, and returns its id, if it has one. Without an error, it was whole.
pub(crate) fn walk(
    mut input: StreamInput,
    counters: &Counters,
    visitor: &mut impl Visitor,
) -> Result<Option<ImageId>, Error> {
    let mut current = None;
    let mut id = None;
    loop {
        let before = input.position();
        let marker = input.next_marker()?;
        counters.add(0, input.position() - before);
        id = id.or(marker.image_id);
        if before == 0 {
            visitor.image(marker.image_id, marker.parent_id);
        }
        match (marker.body, &current) {
            (Body::Filename(name), _) => {
                visitor.file(&name)?;
                current = Some(name);
            }
            (Body::FileData(length), Some(name)) => {
                copy(&mut input, counters, visitor, name, length.into())?;
            }
            (Body::FileEof, Some(name)) => {
                visitor.end(name)?;
                current = None;
            }
            (Body::ImageEof, _) => break,
            // `StreamInput` refuses markers that belong to no file.
            (Body::FileData(_) | Body::FileEof, None) => {}
        }
    }
    counters.end(0);
    Ok(id)
}

fn copy(
    input: &mut StreamInput,
    counters: &Counters,
    visitor: &mut impl Visitor,
    name: &FileName,
    length: u64,
) -> Result<(), Error> {
    let mut left = length;
    while left > 0 {
        match input.move_payload(visitor.sink(name)?, left) {
            Ok(moved) => {
                left -= moved;
                counters.add(0, moved);
                visitor.took(name, moved);
            }
            Err(PayloadError::Input(error)) => return Err(Error::Input(error)),
            Err(PayloadError::Output(error)) => return Err(visitor.failed(name, error)),
        }
    }
    Ok(())
}
