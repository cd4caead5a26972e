//! The table of what is measured.

use crate::image::Shape;
use crate::reader::Take;

/// One piece of work, and its place in the tables and figures.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) work: Work,
    pub(crate) pipes: Pipes,
}

impl Case {
    /// Whether most of its time goes into waking up: so it does where each program waits for the
    /// other after a few bytes.
    pub(crate) fn is_waking_up(&self) -> bool {
        let is_small = |shape| shape == Shape::SmallFiles;
        self.pipes == Pipes::Small
            || matches!(self.work, Work::Restore(Restore { shape, .. }) if is_small(shape))
    }

    /// Whether `fs.pipe-max-size` makes no difference to it.
    pub(crate) fn is_same_in_all_settings(&self) -> bool {
        self.pipes == Pipes::Small || matches!(self.work, Work::RealStart | Work::RealFill)
    }
}

/// How large pipes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pipes {
    /// As large as the setting allows.
    Usual,
    /// Two pages: what a user without privileges gets who has used up what
    /// `fs.pipe-user-pages-soft` allows.
    Small,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// The stand-in for CRIU dumps.
    Dump(Dump),
    /// The stand-in for CRIU dumps through the page server, to one reader.
    Pages(Take),
    /// The stand-in for CRIU restores.
    Restore(Restore),
    /// The real CRIU dumps a process that goes on.
    RealDump,
    /// The real CRIU restores a process that it has dumped before.
    RealRestore(Arrival),
    /// The same, until the process goes on.
    RealStart,
    /// The same from one file, until all memory is there.
    RealFill,
}

/// How the image of a real restore arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is there, in a tmpfs.
    There,
    /// So many bytes a second, all shards together.
    Network(u64),
}

/// What the network of [`Arrival::Network`] brings, in bytes a second: slower than CRIU fills
/// memory, as it mostly is.
pub(crate) const NETWORK: u64 = 500_000_000;

/// A dump by the stand-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dump {
    pub(crate) shape: Shape,
    pub(crate) shards: usize,
    /// What the readers of the shards do.
    pub(crate) take: Take,
    /// One reader is ten times slower than its share.
    pub(crate) slow: bool,
}

/// A restore by the stand-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restore {
    pub(crate) shape: Shape,
    pub(crate) source: Source,
}

/// Where the image of a restore comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// So many shards, each from a plain writer.
    Writers(usize),
    /// One plain writer, and the ways to hold the image compete.
    Stores,
    /// A file that was just written, in the directory for temporary files.
    File,
}

/// All cases, in the order in which they run.
pub(crate) const CASES: &[Case] = &[
    case(
        "capture-1-splice",
        "Capture as one stream, a reader that splices to /dev/null",
        dump(Shape::Process, 1, Take::Splice),
    ),
    case(
        "capture-1-read",
        "Capture as one stream, a reader that reads",
        dump(Shape::Process, 1, Take::Read),
    ),
    case(
        "capture-4-splice",
        "Capture as 4 shards, readers that splice to /dev/null",
        dump(Shape::Process, 4, Take::Splice),
    ),
    case(
        "capture-4-read",
        "Capture as 4 shards, readers that read",
        dump(Shape::Process, 4, Take::Read),
    ),
    case(
        "capture-16-splice",
        "Capture as 16 shards, readers that splice to /dev/null",
        dump(Shape::Process, 16, Take::Splice),
    ),
    case(
        "capture-1-dd",
        "Capture as one stream, a dd that reads 1 MiB at a time",
        dump(Shape::Process, 1, Take::Dd),
    ),
    case(
        "capture-4-dd",
        "Capture as 4 shards, four dd that read 1 MiB at a time",
        dump(Shape::Process, 4, Take::Dd),
    ),
    case(
        "slow-shard",
        "Capture as 4 shards, one of them throttled to a tenth",
        Work::Dump(Dump { shape: Shape::Process, shards: 4, take: Take::Splice, slow: true }),
    ),
    case(
        "capture-tree",
        "Capture of 50 processes with interleaved pages, as 4 shards",
        dump(Shape::Tree, 4, Take::Splice),
    ),
    case(
        "capture-small",
        "Capture of 20,000 small files as 4 shards",
        dump(Shape::SmallFiles, 4, Take::Splice),
    ),
    case(
        "page-capture-splice",
        "Page server's connection as one stream, a reader that splices to /dev/null",
        Work::Pages(Take::Splice),
    ),
    case(
        "page-capture-read",
        "Page server's connection as one stream, a reader that reads",
        Work::Pages(Take::Read),
    ),
    case(
        "restore-1",
        "Restore from one stream, from a plain writer",
        restore(Shape::Process, Source::Writers(1)),
    ),
    case(
        "restore-4",
        "Restore from 4 shards, from plain writers",
        restore(Shape::Process, Source::Writers(4)),
    ),
    case(
        "restore-tree",
        "Restore of 50 processes with interleaved pages, from 4 shards",
        restore(Shape::Tree, Source::Writers(4)),
    ),
    case(
        "restore-small",
        "Restore of 20,000 small files from 4 shards",
        restore(Shape::SmallFiles, Source::Writers(4)),
    ),
    case(
        "restore-store",
        "Restore from one stream, held in memory and in pipes",
        restore(Shape::Process, Source::Stores),
    ),
    case(
        "restore-file",
        "Restore from a stream that is a file in the page cache",
        restore(Shape::Process, Source::File),
    ),
    Case {
        name: "small-pipes-capture",
        title: "Capture as one stream, in pipes of two pages",
        work: dump(Shape::Process, 1, Take::Read),
        pipes: Pipes::Small,
    },
    Case {
        name: "small-pipes-capture-4",
        title: "Capture as 4 shards, in pipes of two pages",
        work: dump(Shape::Process, 4, Take::Read),
        pipes: Pipes::Small,
    },
    Case {
        name: "small-pipes-restore",
        title: "Restore from a file in the page cache, in pipes of two pages",
        work: restore(Shape::Process, Source::File),
        pipes: Pipes::Small,
    },
    case("criu-dump", "The real CRIU dumps a process that goes on, as 4 shards", Work::RealDump),
    case(
        "criu-restore",
        "The real CRIU restores, from 4 shards in tmpfs",
        Work::RealRestore(Arrival::There),
    ),
    case(
        "criu-arrival",
        "The real CRIU restores, from 4 shards that arrive at 500 MB/s together",
        Work::RealRestore(Arrival::Network(NETWORK)),
    ),
    case("criu-start", "The real CRIU restores, until the process goes on", Work::RealStart),
    case("criu-fill", "The real CRIU restores, until all memory is there", Work::RealFill),
];

const fn case(name: &'static str, title: &'static str, work: Work) -> Case {
    Case { name, title, work, pipes: Pipes::Usual }
}

const fn dump(shape: Shape, shards: usize, take: Take) -> Work {
    Work::Dump(Dump { shape, shards, take, slow: false })
}

const fn restore(shape: Shape, source: Source) -> Work {
    Work::Restore(Restore { shape, source })
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Nobody: what the kernel could do.
    Bare,
    /// `cat`, a filter that copies.
    Cat,
    /// CRIU alone, with a directory in a tmpfs.
    Criu,
    /// The filters.
    Filters,
    /// The filters in the directory that `BASE` names.
    Base,
    /// The filters, and the image is held in anonymous memory.
    Memory,
    /// The same, on a machine that has no huge pages.
    SmallPages,
    /// The filters, with the shards kept as files in a tmpfs.
    Kept,
    /// The filters, and one of the shards holds the metadata: CRIU begins with that.
    Early,
    /// The filters, with a tenth of the memory.
    Tenth,
    /// The program that `PEER` names.
    Peer,
}

impl Contender {
    /// It isn't a streamer.
    pub(crate) fn is_reference(self) -> bool {
        matches!(self, Contender::Bare | Contender::Cat | Contender::Criu)
    }

    /// What it is called in the tables.
    pub(crate) fn name(self, work: &Work) -> &'static str {
        match (self, work) {
            (Contender::Bare, Work::Dump(Dump { shape: Shape::SmallFiles, .. })) => "bare protocol",
            (Contender::Bare, Work::Restore(Restore { shape: Shape::SmallFiles, .. })) => {
                "bare protocol"
            }
            (Contender::Bare, Work::Restore(Restore { source: Source::File, .. })) => "bare file",
            (Contender::Bare, Work::Pages(_)) => "bare socket and pipe",
            (Contender::Bare, _) => "bare pipe",
            (Contender::Cat, _) => "cat",
            (Contender::Criu, _) => "criu, files in tmpfs",
            (Contender::Peer, _) => "criu-image-streamer",
            (Contender::Base, _) => "those of BASE",
            (Contender::Kept, _) => "capture|split to tmpfs",
            (Contender::Early, _) => "the same, metadata first",
            (Contender::Tenth, _) => "image-serve --lazy, a tenth",
            (Contender::Filters, Work::RealStart | Work::RealFill) => "image-serve --lazy",
            (Contender::Filters, Work::Dump(Dump { shards: 1, .. })) => "criu-sock-capture",
            (Contender::Filters, Work::Pages(_)) => "criu-page-capture",
            (Contender::Filters, Work::Dump(_) | Work::RealDump) => "capture|split",
            (Contender::Filters, Work::Restore(restore)) if restore.shards() == 1 => "image-serve",
            (Contender::Filters, _) => "merge|serve",
            (Contender::Memory, _) => "memory, huge pages",
            (Contender::SmallPages, _) => "memory, 4 KiB pages",
        }
    }
}

impl Restore {
    /// How many shards the image comes in.
    pub(crate) fn shards(&self) -> usize {
        match self.source {
            Source::Writers(shards) => shards,
            Source::Stores | Source::File => 1,
        }
    }
}

impl Work {
    /// Whether it takes the real CRIU.
    pub(crate) fn is_real(&self) -> bool {
        use Work::{RealDump, RealFill, RealRestore, RealStart};
        matches!(self, RealDump | RealRestore(_) | RealStart | RealFill)
    }

    /// What takes seconds for what others do in tenths has no more rounds than this.
    const SLOW_ROUNDS_MAX: usize = 3;

    /// How many rounds there may be of it.
    pub(crate) fn rounds_max(&self) -> usize {
        match self {
            Work::RealDump
            | Work::RealRestore(_)
            | Work::RealStart
            | Work::RealFill
            | Work::Restore(Restore { source: Source::Stores, .. }) => Work::SLOW_ROUNDS_MAX,
            Work::Dump(_) | Work::Pages(_) | Work::Restore(_) => usize::MAX,
        }
    }

    /// Who may compete.
    pub(crate) fn contenders(&self) -> &'static [Contender] {
        use Contender::{
            Bare, Base, Cat, Criu, Early, Filters, Kept, Memory, Peer, SmallPages, Tenth,
        };

        match self {
            Work::Dump(Dump { shape: Shape::SmallFiles, .. }) => &[Bare, Filters, Base, Peer],
            Work::Pages(_) => &[Bare, Filters],
            Work::Restore(Restore { shape: Shape::SmallFiles, .. }) => &[Bare, Filters, Base, Peer],
            Work::Restore(Restore { source: Source::Stores, .. }) => {
                &[SmallPages, Memory, Filters, Base]
            }
            // With more shards or files `cat` would do just the same again.
            Work::Dump(Dump { shards: 1, .. })
            | Work::Restore(Restore { source: Source::Writers(1), .. }) => {
                &[Bare, Cat, Filters, Base, Peer]
            }
            Work::Dump(_) | Work::Restore(_) => &[Bare, Filters, Base, Peer],
            Work::RealDump => &[Criu, Filters, Kept, Base, Peer],
            Work::RealRestore(Arrival::There) => &[Criu, Filters, Early, Base, Peer],
            Work::RealRestore(Arrival::Network(_)) => &[Filters, Early, Base, Peer],
            Work::RealStart => &[Criu, Filters, Tenth],
            Work::RealFill => &[Criu, Filters],
        }
    }
}
