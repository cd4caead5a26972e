//! The table of what is measured.

use crate::image::Shape;
use crate::reader::Take;

/// One piece of work, and its place in the tables and figures.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) work: Work,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// The stand-in for CRIU dumps.
    Dump(Dump),
    /// The stand-in for CRIU restores.
    Restore(Restore),
    /// The real CRIU dumps a process that goes on.
    RealDump,
    /// The real CRIU restores a process that it has dumped before.
    RealRestore,
}

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

/// A restore by the stand-in, from plain writers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restore {
    pub(crate) shape: Shape,
    pub(crate) shards: usize,
}

/// All cases, in the order in which they run.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "capture-1-splice",
        title: "Capture as one stream, a reader that splices to /dev/null",
        work: dump(Shape::Process, 1, Take::Splice),
    },
    Case {
        name: "capture-1-read",
        title: "Capture as one stream, a reader that reads",
        work: dump(Shape::Process, 1, Take::Read),
    },
    Case {
        name: "capture-4-splice",
        title: "Capture as 4 shards, readers that splice to /dev/null",
        work: dump(Shape::Process, 4, Take::Splice),
    },
    Case {
        name: "capture-4-read",
        title: "Capture as 4 shards, readers that read",
        work: dump(Shape::Process, 4, Take::Read),
    },
    Case {
        name: "capture-16-splice",
        title: "Capture as 16 shards, readers that splice to /dev/null",
        work: dump(Shape::Process, 16, Take::Splice),
    },
    Case {
        name: "slow-shard",
        title: "Capture as 4 shards, one of them throttled to a tenth",
        work: Work::Dump(Dump { shape: Shape::Process, shards: 4, take: Take::Splice, slow: true }),
    },
    Case {
        name: "capture-tree",
        title: "Capture of 50 processes with interleaved pages, as 4 shards",
        work: dump(Shape::Tree, 4, Take::Splice),
    },
    Case {
        name: "capture-small",
        title: "Capture of 20,000 small files as 4 shards",
        work: dump(Shape::SmallFiles, 4, Take::Splice),
    },
    Case {
        name: "restore-1",
        title: "Restore from one stream, from a plain writer",
        work: restore(Shape::Process, 1),
    },
    Case {
        name: "restore-4",
        title: "Restore from 4 shards, from plain writers",
        work: restore(Shape::Process, 4),
    },
    Case {
        name: "restore-tree",
        title: "Restore of 50 processes with interleaved pages, from 4 shards",
        work: restore(Shape::Tree, 4),
    },
    Case {
        name: "restore-small",
        title: "Restore of 20,000 small files from 4 shards",
        work: restore(Shape::SmallFiles, 4),
    },
    Case {
        name: "criu-dump",
        title: "The real CRIU dumps a process that goes on, as 4 shards",
        work: Work::RealDump,
    },
    Case {
        name: "criu-restore",
        title: "The real CRIU restores, from 4 shards in tmpfs",
        work: Work::RealRestore,
    },
];

const fn dump(shape: Shape, shards: usize, take: Take) -> Work {
    Work::Dump(Dump { shape, shards, take, slow: false })
}

const fn restore(shape: Shape, shards: usize) -> Work {
    Work::Restore(Restore { shape, shards })
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
    /// The filters, with the shards kept as files in a tmpfs.
    Kept,
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
            (Contender::Bare, _) => "bare pipe",
            (Contender::Cat, _) => "cat",
            (Contender::Criu, _) => "criu, files in tmpfs",
            (Contender::Peer, _) => "criu-image-streamer",
            (Contender::Kept, _) => "capture|split to tmpfs",
            (Contender::Filters, Work::Dump(Dump { shards: 1, .. })) => "criu-sock-capture",
            (Contender::Filters, Work::Dump(_) | Work::RealDump) => "capture|split",
            (Contender::Filters, Work::Restore(Restore { shards: 1, .. })) => "image-serve",
            (Contender::Filters, _) => "merge|serve",
        }
    }
}

impl Work {
    /// Who competes, given whether there is a peer.
    pub(crate) fn contenders(&self, has_peer: bool) -> Vec<Contender> {
        use Contender::{Bare, Cat, Criu, Filters, Kept, Peer};

        let all: &[Contender] = match self {
            Work::Dump(Dump { shape: Shape::SmallFiles, .. }) => &[Bare, Filters, Peer],
            Work::Restore(Restore { shape: Shape::SmallFiles, .. }) => &[Filters, Peer],
            // With more shards or files `cat` would do just the same again.
            Work::Dump(Dump { shards: 1, .. }) | Work::Restore(Restore { shards: 1, .. }) => {
                &[Bare, Cat, Filters, Peer]
            }
            Work::Dump(_) | Work::Restore(_) => &[Bare, Filters, Peer],
            Work::RealDump => &[Criu, Filters, Kept, Peer],
            Work::RealRestore => &[Criu, Filters, Peer],
        };
        all.iter().copied().filter(|contender| has_peer || *contender != Peer).collect()
    }
}
