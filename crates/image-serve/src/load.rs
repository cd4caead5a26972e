//! Taking in the image.

use crate::error::Error;
use crate::store::{Incoming, Pipes, Store};
use cli::{Closing, Counters, PayloadError, Place, StreamInput};
use pipe_io::Endpoint;
use std::collections::HashMap;
use wire_format::{Body, FileName};

/// The image, and what it is read from: it may stay there.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    pub(crate) input: StreamInput,
}

/// Files that go to descriptors as they arrive. `None` for one that is complete.
pub(crate) type External = HashMap<FileName, (Place, Option<Endpoint>)>;

/// Reads the stream to its end. Without an error, it was a whole image. The file named by `keep`
/// rests in ordinary memory.
pub(crate) fn load(
    input: StreamInput,
    external: External,
    pipes: Pipes,
    keep: Option<&'static str>,
    counters: &Counters,
) -> Result<Loaded, Error> {
    let mut load = Load {
        input,
        external,
        closing: Closing::default(),
        pipes,
        keep,
        store: Store::default(),
        open: HashMap::new(),
        current: None,
    };
    loop {
        let before = load.input.position();
        let is_last = load.next()?;
        counters.add(0, load.input.position() - before);
        if is_last {
            break;
        }
    }
    counters.end(0);
    if let Some((place, _)) = load.external.into_values().find(|(_, endpoint)| endpoint.is_some()) {
        return Err(Error::NoSuchFile(place));
    }
    load.closing.finish()?;
    Ok(Loaded { store: load.store, input: load.input })
}

struct Load {
    input: StreamInput,
    external: External,
    /// The external files that are complete.
    closing: Closing,
    pipes: Pipes,
    keep: Option<&'static str>,
    store: Store,
    /// The files that are not complete.
    open: HashMap<FileName, Incoming>,
    current: Option<FileName>,
}

impl Load {
    /// Takes in the next marker and its payload; `true` if it was the last.
    fn next(&mut self) -> Result<bool, Error> {
        match (self.input.next_marker()?.body, self.current.take()) {
            (Body::ImageEof, _) => return Ok(true),
            (Body::Filename(name), _) => {
                self.begin(&name)?;
                self.current = Some(name);
            }
            (Body::FileData(length), Some(name)) => {
                self.data(&name, length.into())?;
                self.current = Some(name);
            }
            (Body::FileEof, Some(name)) => self.end(&name)?,
            // `StreamInput` refuses markers that belong to no file.
            (Body::FileData(_) | Body::FileEof, None) => {}
        }
        Ok(false)
    }

    fn begin(&mut self, name: &FileName) -> Result<(), Error> {
        match self.external.get(name) {
            Some((_, Some(_))) => {}
            Some((place, None)) => return Err(Error::ExternalAgain(place.clone())),
            None if self.open.contains_key(name) => {}
            None => {
                let keep = self.keep == Some(name.as_str());
                // One of the same name is replaced, and if the new one does not come to its end
                // the whole image is refused.
                self.pipes.were_emptied(self.store.remove(name));
                self.open.insert(name.clone(), Incoming::new(name.clone(), keep));
            }
        }
        Ok(())
    }

    fn data(&mut self, name: &FileName, length: u64) -> Result<(), Error> {
        if let Some(incoming) = self.open.get_mut(name) {
            return incoming.take_in(&mut self.input, length, &mut self.pipes);
        }
        let Some((place, Some(endpoint))) = self.external.get(name) else { return Ok(()) };
        let mut left = length;
        while left > 0 {
            left -= self.input.move_payload(endpoint, left).map_err(|error| match error {
                PayloadError::Input(error) => Error::Input(error),
                PayloadError::Output(error) => Error::External(place.clone(), error),
            })?;
        }
        Ok(())
    }

    fn end(&mut self, name: &FileName) -> Result<(), Error> {
        if let Some(incoming) = self.open.remove(name) {
            let (name, pieces) = incoming.complete(&mut self.pipes)?;
            self.store.insert(name, pieces);
            return Ok(());
        }
        if let Some((place, endpoint)) = self.external.get_mut(name) {
            if let Some(endpoint) = endpoint.take() {
                self.closing.add(place.clone(), endpoint)?;
            }
        }
        Ok(())
    }
}
