//! One command of CRIU's, and the two layouts that it may have.

use std::fmt;
use wire_format::FileName;

/// The length of a command in the layout of CRIU 4.1 and before, in bytes.
pub const HEADER_MIN: usize = 24;

/// The length of a command in the layout of CRIU 4.2, in bytes.
pub const HEADER_MAX: usize = 32;

/// How the fields of a command lie, all of them little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `cmd:u32 nr_pages:u32 vaddr:u64 dst_id:u64`
    Short,
    /// `cmd:u32 padding:u32 nr_pages:u64 vaddr:u64 dst_id:u64`; the padding is not initialized.
    Long,
}

/// Whose memory pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// The task's that has this pid in the image.
    Task(u32),
    /// A segment's that tasks share.
    Segment(u64),
}

/// A run of pages that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they are in the address space of the task, or in the segment; in bytes.
    pub start: u64,
    /// How many; not 0.
    pub pages: u64,
    /// Where their content is.
    pub origin: Origin,
}

/// Where the content of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In this image. With `lazy` a restore may bring it when the process runs already.
    Here {
        /// Whether it may come late.
        lazy: bool,
    },
    /// Unchanged since the image that this one builds on.
    Parent,
}

/// What CRIU says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// It asks whether we hold an earlier image of this memory. The answer is an `int32`: 1 or 0.
    HasParent(Memory),
    /// The runs that follow are of this memory. The answer is a byte: whether we hold an earlier
    /// image of it.
    Open(Memory),
    /// Pages. If their content is here it follows. There is no answer.
    Pages(Memory, Run),
    /// That was all. The answer is an `int32`: 0, or the dump fails and the process runs on. A dump
    /// that has failed already says it, too.
    Close,
}

/// Bytes that are no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// None that we know.
    Unknown(u32),
    /// Of memory that is neither a task's nor a segment's, or without a valid number.
    NoMemory(u64),
    /// Pages with these flags: none that can stand in an image.
    Flags(u32),
    /// This number of pages at this address do not fit into an address space.
    Range(u64, u64),
    /// Pages at this address, which is not a multiple of so many bytes, the size of a page.
    Unaligned(u64, u64),
}

const OPEN: u32 = 4;
const PARENT: u32 = 5;
const ADD: u32 = 6;
const CLOSE: u32 = 0x1023;
/// What CRIU says in the place of `CLOSE` on a socket that it was given.
const FORCE_CLOSE: u32 = 0x1024;

/// The number of a command is in the lower half, and flags are in the upper.
const FLAGS_SHIFT: u32 = 16;

/// The flags of pages, here and in a pagemap.
pub(crate) const IN_PARENT: u32 = 1;
pub(crate) const LAZY: u32 = 2;
pub(crate) const PRESENT: u32 = 4;

const KIND_BITS: u32 = 8;
const KIND_TASK: u64 = 1;
const KIND_SEGMENT: u64 = 2;

impl Layout {
    /// The layout of a connection, by the first [`HEADER_MIN`] bytes of it: CRIU begins with a
    /// question about memory, or with opening one, without an address. So what stands last tells
    /// whether it is the address or the memory.
    ///
    /// A dump that fails before it comes to memory says only [`Command::Close`], which is zeros in
    /// both. Nothing follows that, so it is read as the short one: CRIU waits for the answer, and
    /// would never send what the long one lacks.
    pub fn of(first: &[u8; HEADER_MIN]) -> Layout {
        match (read_u32(first, 0), read_u64(first, 16)) {
            (CLOSE | FORCE_CLOSE, _) => Layout::Short,
            (_, 0) => Layout::Long,
            _ => Layout::Short,
        }
    }

    /// How long a command is, in bytes.
    pub fn header_length(self) -> usize {
        match self {
            Layout::Short => HEADER_MIN,
            Layout::Long => HEADER_MAX,
        }
    }

    /// Reads a command, which has [`Layout::header_length`] bytes, from the start of `bytes`.
    pub fn decode(self, bytes: &[u8], page_size: u64) -> Result<Command, CommandError> {
        let (pages, start, memory) = match self {
            Layout::Short => (read_u32(bytes, 4).into(), read_u64(bytes, 8), read_u64(bytes, 16)),
            Layout::Long => (read_u64(bytes, 8), read_u64(bytes, 16), read_u64(bytes, 24)),
        };
        let command = read_u32(bytes, 0);
        let flags = command >> FLAGS_SHIFT;
        match command & 0xffff {
            CLOSE | FORCE_CLOSE if flags == 0 => Ok(Command::Close),
            OPEN if flags == 0 => Ok(Command::Open(Memory::decode(memory)?)),
            PARENT if flags == 0 => Ok(Command::HasParent(Memory::decode(memory)?)),
            ADD => {
                let memory = Memory::decode(memory)?;
                let origin = Origin::decode(flags)?;
                let run = Run { start, pages, origin };
                run.check(page_size)?;
                Ok(Command::Pages(memory, run))
            }
            _ => Err(CommandError::Unknown(command)),
        }
    }
}

impl Memory {
    fn decode(number: u64) -> Result<Memory, CommandError> {
        let id = number >> KIND_BITS;
        match number & ((1 << KIND_BITS) - 1) {
            KIND_TASK if id > 0 && id <= i32::MAX as u64 => Ok(Memory::Task(id as u32)),
            KIND_SEGMENT => Ok(Memory::Segment(id)),
            _ => Err(CommandError::NoMemory(number)),
        }
    }

    /// The file of an image that says where the pages of this memory are.
    pub fn pagemap(self) -> Result<FileName, wire_format::NameError> {
        match self {
            Memory::Task(pid) => FileName::new(&format!("pagemap-{pid}.img")),
            Memory::Segment(id) => FileName::new(&format!("pagemap-shmem-{id}.img")),
        }
    }

    /// The memory that a file of an image says this of; `None` for any other file.
    pub fn of_pagemap(name: &FileName) -> Option<Memory> {
        let id = name.as_str().strip_prefix("pagemap-")?.strip_suffix(".img")?;
        let memory = match id.strip_prefix("shmem-") {
            Some(id) => Memory::Segment(id.parse().ok()?),
            None => Memory::Task(id.parse().ok()?),
        };
        // Only as CRIU writes it: no sign, no zeros before it.
        memory.pagemap().is_ok_and(|written| written == *name).then_some(memory)
    }
}

impl Origin {
    pub(crate) fn decode(flags: u32) -> Result<Origin, CommandError> {
        match flags {
            PRESENT => Ok(Origin::Here { lazy: false }),
            f if f == PRESENT | LAZY => Ok(Origin::Here { lazy: true }),
            IN_PARENT => Ok(Origin::Parent),
            _ => Err(CommandError::Flags(flags)),
        }
    }

    pub(crate) fn flags(self) -> u32 {
        match self {
            Origin::Here { lazy: false } => PRESENT,
            Origin::Here { lazy: true } => PRESENT | LAZY,
            Origin::Parent => IN_PARENT,
        }
    }
}

impl Run {
    /// Whether it can be: at least one page, each where one begins, all of them within an address
    /// space.
    pub(crate) fn check(&self, page_size: u64) -> Result<(), CommandError> {
        let out_of_range = CommandError::Range(self.pages, self.start);
        if self.start % page_size != 0 {
            return Err(CommandError::Unaligned(self.start, page_size));
        }
        let bytes = self.pages.checked_mul(page_size).ok_or(out_of_range)?;
        // Not the last byte: that would be one too many for what ends there.
        match self.start.checked_add(bytes) {
            Some(end) if bytes > 0 && end <= i64::MAX as u64 => Ok(()),
            _ => Err(out_of_range),
        }
    }

    /// How many bytes they are; after [`Run::check`] it fits.
    pub fn bytes(&self, page_size: u64) -> u64 {
        self.pages.saturating_mul(page_size)
    }

    /// Where they end.
    pub fn end(&self, page_size: u64) -> u64 {
        self.start.saturating_add(self.bytes(page_size))
    }
}

/// Zero where there are no bytes.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_le_bytes(field.copied().unwrap_or_default())
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_le_bytes(field.copied().unwrap_or_default())
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Task(pid) => write!(f, "task {pid}"),
            Memory::Segment(id) => write!(f, "shared segment {id}"),
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Unknown(command) => write!(f, "an unknown command, {command:#x}"),
            CommandError::NoMemory(number) => {
                write!(f, "memory {number:#x}, which is neither a task's nor a shared segment's")
            }
            CommandError::Flags(flags) => {
                write!(f, "pages with the flags {flags:#x}, which no image can have")
            }
            CommandError::Range(pages, start) => {
                write!(f, "{pages} pages at {start:#x}, which no address space has")
            }
            CommandError::Unaligned(start, page_size) => {
                write!(f, "pages at {start:#x}, where none of {page_size} bytes begins")
            }
        }
    }
}

impl std::error::Error for CommandError {}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn short(command: u32, pages: u32, start: u64, memory: u64) -> Vec<u8> {
        let mut bytes = command.to_le_bytes().to_vec();
        bytes.extend(pages.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend(memory.to_le_bytes());
        bytes
    }

    fn long(command: u32, pages: u64, start: u64, memory: u64) -> Vec<u8> {
        let mut bytes = command.to_le_bytes().to_vec();
        // CRIU does not initialize it.
        bytes.extend(*b"\xaa\xbb\xcc\xdd");
        [pages, start, memory].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        bytes
    }

    fn both(command: u32, pages: u32, start: u64, memory: u64) -> Result<Command, CommandError> {
        let decoded = Layout::Short.decode(&short(command, pages, start, memory), PAGE);
        let other = Layout::Long.decode(&long(command, pages.into(), start, memory), PAGE);
        assert_eq!(decoded, other);
        decoded
    }

    fn first(bytes: &[u8]) -> Layout {
        Layout::of(bytes.first_chunk().unwrap())
    }

    #[test]
    fn the_first_command_tells_the_layouts_apart() {
        for command in [OPEN, PARENT] {
            for memory in [0x4d201, 0xa02, 2] {
                assert_eq!(first(&short(command, 0, 0, memory)), Layout::Short);
                assert_eq!(first(&long(command, 0, 0, memory)), Layout::Long);
            }
        }
    }

    #[test]
    fn a_last_word_that_comes_first_needs_no_more() {
        for bytes in [short(CLOSE, 0, 0, 0), long(FORCE_CLOSE, 0, 0, 0)] {
            let layout = first(&bytes);
            assert_eq!(layout.decode(&bytes[..layout.header_length()], PAGE), Ok(Command::Close));
        }
    }

    #[test]
    fn commands_are_read_in_both_layouts() {
        assert_eq!(both(OPEN, 0, 0, 1234 << 8 | 1), Ok(Command::Open(Memory::Task(1234))));
        assert_eq!(both(OPEN, 0, 0, 10 << 8 | 2), Ok(Command::Open(Memory::Segment(10))));
        assert_eq!(both(PARENT, 0, 0, 7 << 8 | 1), Ok(Command::HasParent(Memory::Task(7))));
        assert_eq!(both(CLOSE, 0, 0, 0), Ok(Command::Close));
        assert_eq!(both(FORCE_CLOSE, 0, 0, 0), Ok(Command::Close));
        for (flags, origin) in [
            (PRESENT, Origin::Here { lazy: false }),
            (PRESENT | LAZY, Origin::Here { lazy: true }),
            (IN_PARENT, Origin::Parent),
        ] {
            let run = Run { start: 0x7000, pages: 3, origin };
            let expected = Command::Pages(Memory::Task(7), run);
            assert_eq!(both(ADD | flags << 16, 3, 0x7000, 7 << 8 | 1), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        use CommandError::*;
        let task = 7 << 8 | 1;
        assert_eq!(both(3, 0, 0, task), Err(Unknown(3)));
        assert_eq!(both(OPEN | 1 << 16, 0, 0, task), Err(Unknown(0x10004)));
        assert_eq!(both(OPEN, 0, 0, 7 << 8 | 3), Err(NoMemory(0x703)));
        assert_eq!(both(OPEN, 0, 0, 1), Err(NoMemory(1)));
        assert_eq!(both(OPEN, 0, 0, 1 << 40 | 1), Err(NoMemory(1 << 40 | 1)));
        for flags in [0, LAZY, IN_PARENT | PRESENT, IN_PARENT | LAZY, 8, PRESENT | 8] {
            assert_eq!(both(ADD | flags << 16, 1, 0, task), Err(Flags(flags)));
        }
        let add = ADD | PRESENT << 16;
        assert_eq!(both(add, 0, 0x1000, task), Err(Range(0, 0x1000)));
        assert_eq!(both(add, 1, 0x1001, task), Err(Unaligned(0x1001, 4096)));
        assert_eq!(both(add, 2, (1 << 63) - 4096, task), Err(Range(2, (1 << 63) - 4096)));
        let huge = Layout::Long.decode(&long(add, 1 << 60, 0, task), PAGE);
        assert_eq!(huge, Err(Range(1 << 60, 0)));
    }

    #[test]
    fn a_pagemap_has_the_name_that_criu_gives_it() {
        for (memory, name) in [
            (Memory::Task(1234), "pagemap-1234.img"),
            (Memory::Segment(10), "pagemap-shmem-10.img"),
            (Memory::Segment(u64::MAX), "pagemap-shmem-18446744073709551615.img"),
        ] {
            assert_eq!(memory.pagemap().unwrap().as_str(), name);
            assert_eq!(Memory::of_pagemap(&FileName::new(name).unwrap()), Some(memory));
        }
        for name in ["pagemap-.img", "pagemap-01.img", "pagemap-+1.img", "pagemap-1.imgx", "a.img"]
        {
            assert_eq!(Memory::of_pagemap(&FileName::new(name).unwrap()), None, "{name}");
        }
    }
}
