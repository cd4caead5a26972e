//! `--lazy`: the processes run at once, and their memory comes when it is touched.

use crate::NAME;
use crate::error::Error;
use crate::store::{Piece, Pieces, Store};
use cli::{Cleanup, Progress, UsageError};
use lazy_pages::{ImageFile, Keeper, Moment, Pagemap, Pages, PagesImage, Place, Server};
use pipe_io::pipe::page;
use pipe_io::{Endpoint, Kind, process};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use wire_format::FileName;

/// The options of memory on demand.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct LazyArgs {
    /// Let processes run before memory is there
    #[arg(long)]
    lazy: bool,

    /// Where CRIU is told to work [DIR of --images-dir]
    #[arg(short = 'W', long, value_name = "DIR", requires = "lazy", hide_short_help = true)]
    work_dir: Option<PathBuf>,

    /// Fill memory by N threads [one for each CPU]
    #[arg(long, value_name = "N", requires = "lazy")]
    threads: Option<NonZeroUsize>,

    /// Read all of the image before CRIU may be started
    #[arg(long, requires = "lazy", hide_short_help = true)]
    verify_first: bool,
}

/// What was asked for, where it was.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    work_dir: PathBuf,
    threads: NonZeroUsize,
    verify: bool,
}

/// Who serves memory.
#[derive(Debug)]
pub(crate) struct Lazy {
    server: Server,
    keeper: Keeper,
    _socket: Cleanup,
}

/// Memory that comes late.
#[derive(Debug)]
pub(crate) struct LateMemory {
    pages: Pages,
    threads: NonZeroUsize,
}

impl LazyArgs {
    /// Whether memory is to be served on demand, and how.
    pub(crate) fn demand(
        &self,
        stdin: &Endpoint,
        images_dir: &Path,
    ) -> Result<Option<Demand>, UsageError> {
        if !self.lazy {
            return Ok(None);
        }
        if stdin.kind() != Kind::File {
            return Err(UsageError::Options(
                "--lazy: stdin is not a regular file, and memory is read in any order",
            ));
        }
        let threads = self.threads.or_else(|| thread::available_parallelism().ok());
        let threads = threads.unwrap_or(NonZeroUsize::MIN);
        let work_dir = self.work_dir.as_deref().unwrap_or(images_dir).to_owned();
        Ok(Some(Demand { work_dir, threads, verify: self.verify_first }))
    }
}

impl Demand {
    /// Starts the process that guards the memory, where there can be any.
    pub(crate) fn keeper(&self) -> Result<Keeper, Error> {
        lazy_pages::check()?;
        Ok(Keeper::start(NAME)?)
    }
}

impl Lazy {
    /// Listens for the processes.
    pub(crate) fn listen(demand: &Demand, keeper: Keeper) -> Result<Lazy, Error> {
        let (server, socket) = Cleanup::of(|| {
            let server = Server::bind(&demand.work_dir)?;
            let path = server.path().to_owned();
            Ok((server, path))
        })
        .map_err(Error::Lazy)?;
        Ok(Lazy { server, keeper, _socket: socket })
    }

    /// Takes out of the store what CRIU does not get.
    pub(crate) fn leave_out(
        &self,
        store: &mut Store,
        image: &Endpoint,
        demand: &Demand,
    ) -> Result<LateMemory, Error> {
        let file = image.as_fd().try_clone_to_owned().map_err(Error::System)?;
        let mut pages = Pages::new(ImageFile::new(file)?);
        if demand.verify {
            pages.file().read_all(demand.threads)?;
        }
        for (name, pid) in
            store.names().filter_map(|name| Some((name.clone(), pid(name)?))).collect::<Vec<_>>()
        {
            let bytes = contents(store, &name, pages.file())?;
            let map = lazy_pages::split(&bytes, page() as u64)
                .map_err(|error| Error::Pagemap(name.clone(), error))?;
            let (pages_name, pages_image) = pages_image(store, &name, &map)?;
            // CRIU hands over the memory of every process, also where nothing of it is late.
            if map.lazy.is_empty() {
                pages.add(pid, pages_image, map.lazy);
                continue;
            }
            store.insert(pages_name, eager(&pages_image, &map));
            store.insert(name, [Piece::Kept(Arc::new(map.rewritten))].into());
            pages.add(pid, pages_image, map.lazy);
        }
        Ok(LateMemory { pages, threads: demand.threads })
    }

    /// Fails if CRIU asks for what memory was left out of, and nobody is there to hand over where it
    /// belongs: CRIU would make zeros of it.
    pub(crate) fn check_request(&self, name: &FileName) -> Result<(), Error> {
        match pid(name).is_some() && !self.server.has_connected()? {
            true => Err(Error::NotLazy(name.clone())),
            false => Ok(()),
        }
    }

    /// Serves memory while `stream` gives CRIU all else, and until all of it is there.
    pub(crate) fn serve(
        &self,
        late: &LateMemory,
        progress: &Progress,
        stream: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let LateMemory { pages, threads } = late;
        let tell = |moment| match moment {
            Moment::Restored => progress.restored(),
            Moment::Filling { filled, left, time } => progress.filled(filled, left, time),
        };
        let (streamed, served) = thread::scope(|scope| {
            let serving = scope.spawn(move || self.server.run(pages, &self.keeper, *threads, tell));
            let streamed = stream();
            self.server.stream_is_over();
            if streamed.is_ok() {
                // From now on the processes depend on us, and not on who has started us.
                let _ = process::without_starter();
            }
            (streamed, serving.join())
        });
        match served {
            Ok(served) => served?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        streamed
    }
}

/// The process that this file is the pagemap of.
fn pid(name: &FileName) -> Option<i32> {
    let number = name.as_str().strip_prefix("pagemap-")?.strip_suffix(".img")?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

/// A file of the store as a whole.
fn contents(store: &Store, name: &FileName, file: &ImageFile) -> Result<Vec<u8>, Error> {
    let mut contents = Vec::new();
    for piece in store.pieces(name).into_iter().flatten() {
        match piece {
            Piece::Kept(bytes) => contents.extend_from_slice(bytes),
            Piece::Range(offset, length) => {
                let start = contents.len();
                let length = usize::try_from(*length).unwrap_or(usize::MAX);
                let no_room = |_| Error::Hold(name.clone(), std::io::ErrorKind::OutOfMemory.into());
                contents.try_reserve(length).map_err(no_room)?;
                contents.resize(start + length, 0);
                file.read(*offset, contents.get_mut(start..).unwrap_or_default())?;
            }
            // A regular file is not held anywhere else.
            Piece::Pipe(..) | Piece::Region(_) => {}
        }
    }
    Ok(contents)
}

/// The pages image that a pagemap belongs to, which must have as much as that says.
fn pages_image(
    store: &Store,
    pagemap: &FileName,
    map: &Pagemap,
) -> Result<(FileName, PagesImage), Error> {
    let malformed = |_| Error::Pagemap(pagemap.clone(), lazy_pages::PagemapError::Malformed);
    let name = FileName::new(&format!("pages-{}.img", map.pages_id)).map_err(malformed)?;
    let mut image = PagesImage::default();
    for piece in store.pieces(&name).into_iter().flatten() {
        match piece {
            Piece::Kept(bytes) => image.push(bytes.len() as u64, Place::Memory(Arc::clone(bytes))),
            Piece::Range(offset, length) => image.push(*length, Place::File(*offset)),
            // A regular file is not held anywhere else.
            Piece::Pipe(..) | Piece::Region(_) => {}
        }
    }
    match image.size() == map.size {
        true => Ok((name, image)),
        false => Err(Error::Pages(name, pagemap.clone())),
    }
}

/// What CRIU gets of a pages image.
fn eager(image: &PagesImage, map: &Pagemap) -> Pieces {
    let slices = map.eager.iter().flat_map(|(offset, length)| image.slices(*offset, *length));
    let pieces = slices.map(|(place, skipped, length)| match place {
        Place::File(offset) => Piece::Range(offset + skipped, length),
        Place::Memory(bytes) => {
            let start = usize::try_from(skipped).unwrap_or(usize::MAX);
            let bytes = bytes.get(start..).unwrap_or_default().iter();
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            Piece::Kept(Arc::new(bytes.take(length).copied().collect()))
        }
    });
    pieces.collect()
}
