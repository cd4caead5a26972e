//! Taking in the image.

use crate::arrivals::{Arrival, Newest, Sink};
use crate::error::Error;
use crate::store::{Incoming, Pipes, Store};
use cli::{Closing, Counters, PayloadError, Place, StreamInput};
use criu_protocol::is_memory;
use pipe_io::{Endpoint, Kind};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use wire_format::{Body, FileName};

/// What is known of the image.
pub(crate) enum Loaded {
    /// All of it, and what it is read from: it may stay there.
    Whole(Store, Box<StreamInput>),
    /// All that CRIU needs before it reads memory.
    Begun(Box<Begun>),
}

/// An image of which CRIU may begin to read.
pub(crate) struct Begun {
    /// All that has come, but the newest memory.
    pub(crate) store: Store,
    pub(crate) newest: Option<Newest>,
    /// Pipes that were kept for those that CRIU will make.
    pub(crate) ballast: Vec<OwnedFd>,
    /// What takes in the rest.
    pub(crate) load: Load,
}

/// Files that go to descriptors as they arrive. `None` for one that is complete.
pub(crate) type External = HashMap<FileName, (Place, Option<Endpoint>)>;

/// Reads the stream to its end: without an error, it was a whole image. Or until CRIU may begin.
/// The file named by `keep` rests in ordinary memory.
pub(crate) fn load(
    input: StreamInput,
    external: External,
    pipes: Pipes,
    keep: Option<&'static str>,
    counters: &Arc<Counters>,
) -> Result<Loaded, Error> {
    let mut load = Load {
        input,
        external,
        closing: Closing::default(),
        pipes,
        keep,
        counters: Arc::clone(counters),
        store: Store::default(),
        open: HashMap::new(),
        current: None,
        all_named: false,
        newest: None,
        sink: None,
    };
    while !load.next()? {
        if load.may_begin() {
            load.finish_external()?;
            return Ok(Loaded::Begun(Box::new(load.begin_serving())));
        }
    }
    load.finish_external()?;
    Ok(Loaded::Whole(load.store, Box::new(load.input)))
}

/// An image that is being taken in.
pub(crate) struct Load {
    input: StreamInput,
    external: External,
    /// The external files that are complete.
    closing: Closing,
    pipes: Pipes,
    keep: Option<&'static str>,
    counters: Arc<Counters>,
    store: Store,
    /// The files that are not complete.
    open: HashMap<FileName, Incoming>,
    current: Option<FileName>,
    /// Whether all files that CRIU may ask for have been named.
    all_named: bool,
    /// The file that the newest memory belongs to.
    newest: Option<FileName>,
    /// Where all that comes is handed on to, once CRIU may begin.
    sink: Option<Sink>,
}

/// While CRIU reads, pieces are handed on after so many bytes, if not before.
const STEP: u64 = 1 << 20;

impl Load {
    /// Whether CRIU may begin, before all of the image has come.
    ///
    /// It needs to know of each file whether it will come. External files must be complete: what
    /// they hold, such as the files that processes have open, must be in place when CRIU begins, and
    /// no line but `socket-init` says when that is. And some memory must have come, as the newest of
    /// it is what keeps a restore from finishing too early. A regular file is there as a whole.
    fn may_begin(&self) -> bool {
        self.all_named
            && self.newest.is_some()
            && self.input.endpoint().kind() != Kind::File
            && self.external.values().all(|(_, endpoint)| endpoint.is_none())
            && self.keep.is_none_or(|name| self.store.has(name))
    }

    fn begin_serving(mut self) -> Begun {
        let mut store = std::mem::take(&mut self.store);
        for (name, incoming) in &mut self.open {
            store.begin(name.clone(), incoming.hand_on());
        }
        // If it is not in the store it was not handed on.
        let newest = self.newest.take().and_then(|name| {
            let (piece, is_last) = store.take_last(&name)?;
            Some(Newest { name, piece, is_last })
        });
        let ballast = self.pipes.go_live();
        Begun { store, newest, ballast, load: self }
    }

    /// Takes in the rest of the image, and hands it on.
    pub(crate) fn go_on(mut self, sink: Sink) {
        self.sink = Some(sink);
        let taken = self.take_rest();
        self.put(match taken {
            Ok(()) => Arrival::Whole,
            Err(error) => Arrival::Failed(error),
        });
    }

    fn take_rest(&mut self) -> Result<(), Error> {
        while !self.next()? {}
        self.finish_external()
    }

    /// Sees that all external files that are wanted have come, and waits until their readers have
    /// them.
    fn finish_external(&mut self) -> Result<(), Error> {
        match self.external.values().find(|(_, endpoint)| endpoint.is_some()) {
            Some((place, _)) => Err(Error::NoSuchFile(place.clone())),
            None => Ok(std::mem::take(&mut self.closing).finish()?),
        }
    }

    fn put(&self, arrival: Arrival) {
        if let Some(sink) = &self.sink {
            sink.put(arrival);
        }
    }

    /// Takes in the next marker and its payload; `true` if it was the last.
    fn next(&mut self) -> Result<bool, Error> {
        let before = self.input.position();
        let is_last = self.take_marker()?;
        self.counters.add(0, self.input.position() - before);
        if is_last {
            self.counters.end(0);
        }
        Ok(is_last)
    }

    fn take_marker(&mut self) -> Result<bool, Error> {
        let marker = self.input.next_marker()?;
        self.all_named |= marker.all_named;
        match (marker.body, self.current.take()) {
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
                // CRIU may have been told that there is none, or have been given another.
                if self.sink.is_some() {
                    return Err(Error::Late(name.clone()));
                }
                // One of the same name is replaced, and if the new one does not come to its end
                // the whole image is refused.
                self.store.remove(name);
                self.open.insert(name.clone(), Incoming::new(name.clone(), keep));
            }
        }
        Ok(())
    }

    fn data(&mut self, name: &FileName, length: u64) -> Result<(), Error> {
        if let Some(incoming) = self.open.get_mut(name) {
            if is_memory(name.as_str()) && length > 0 {
                self.newest = Some(name.clone());
            }
            let Some(sink) = &self.sink else {
                return incoming.take_in(&mut self.input, length, &mut self.pipes);
            };
            let mut left = length;
            while left > 0 {
                let step = left.min(STEP);
                incoming.take_in(&mut self.input, step, &mut self.pipes)?;
                for piece in incoming.hand_on() {
                    sink.put(Arrival::Piece(name.clone(), piece));
                }
                left -= step;
            }
            return Ok(());
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
            if self.sink.is_none() {
                self.store.insert(name, pieces);
                return Ok(());
            }
            for piece in pieces {
                self.put(Arrival::Piece(name.clone(), piece));
            }
            self.put(Arrival::Ends(name));
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
