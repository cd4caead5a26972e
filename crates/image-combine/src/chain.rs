//! The images, the oldest first.

use crate::error::Error;
use crate::hold::{Store, can_be_read_again};
use crate::image::Image;
use crate::view::View;
use cli::{Counters, Place, StreamInput};
use pipe_io::Endpoint;
use std::collections::HashMap;
use wire_format::{ImageId, Marker};

/// A chain of images, each an increment of the one before it.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) images: Vec<Image>,
    /// All memory as it is at the last of them.
    pub(crate) view: View,
}

impl Chain {
    /// Reads all images that an operand has, one after the other.
    pub(crate) fn read(
        &mut self,
        place: &Place,
        endpoint: Endpoint,
        counters: &Counters,
    ) -> Result<(), Error> {
        let again = match can_be_read_again(&endpoint) {
            true => Some(endpoint.try_clone().map_err(|e| Error::Open(place.clone(), e))?),
            false => None,
        };
        let mut input = StreamInput::new(place.clone(), endpoint);
        let mut found = false;
        while let Some(first) = input.next_image()? {
            found = true;
            self.check_link(place, &first)?;
            let store = match &again {
                Some(file) => {
                    Store::file(file.try_clone().map_err(|e| Error::Open(place.clone(), e))?)
                }
                None => Store::memory().map_err(Error::Hold)?,
            };
            let image = Image::read(place.clone(), &mut input, first, store, counters)?;
            self.add(image)?;
        }
        if found { Ok(()) } else { Err(Error::Empty(place.clone())) }
    }

    /// Sees whether an image, of which this is the first marker, may be the next one.
    fn check_link(&self, place: &Place, first: &Marker) -> Result<(), Error> {
        let (last, parent) = match (self.images.last(), first.parent_id) {
            (None, None) => return Ok(()),
            (None, Some(parent)) => return Err(Error::BaseIsIncrement(place.clone(), parent)),
            (Some(_), None) => return Err(Error::NotAnIncrement(place.clone())),
            (Some(last), Some(parent)) => (last, parent),
        };
        if last.id == Some(parent) {
            return Ok(());
        }
        match self.images.iter().find(|image| image.id == Some(parent)) {
            Some(earlier) => Err(Error::Order(place.clone(), earlier.place.clone())),
            None => Err(Error::MissingLink(place.clone(), parent)),
        }
    }

    fn add(&mut self, image: Image) -> Result<(), Error> {
        self.view = self.view.after(self.images.len(), &image)?;
        self.images.push(image);
        self.give_back()
    }

    /// Gives back the memory of what the images before the last one have that no one needs.
    fn give_back(&self) -> Result<(), Error> {
        let Some((_, earlier)) = self.images.split_last() else { return Ok(()) };
        let mut needed: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
        for piece in self.view.memories.values().flat_map(|pages| &pages.pieces) {
            let Some(image) = earlier.get(piece.image).filter(|image| image.store.is_memory())
            else {
                continue;
            };
            let Some(extents) = image.files.get(&piece.file) else { continue };
            let places = extents.find(piece.offset, piece.length);
            let ranges = places.map(|(offset, length)| (offset, offset + length));
            needed.entry(piece.image).or_default().extend(ranges);
        }
        for (index, image) in earlier.iter().enumerate() {
            let mut ranges = needed.remove(&index).unwrap_or_default();
            ranges.sort_unstable();
            image.store.keep_only(ranges.into_iter()).map_err(Error::Hold)?;
        }
        Ok(())
    }

    /// The id of the image that the chain leads to.
    pub(crate) fn id(&self) -> Option<ImageId> {
        self.images.last().and_then(|image| image.id)
    }
}
