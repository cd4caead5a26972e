//! The standard descriptors of a tree, as CRIU's image describes them: so that others can take their
//! place at a restore.

use prost::Message;
use std::collections::HashMap;
use std::os::fd::RawFd;

/// CRIU's files of an image that are looked at, by their names.
pub(crate) struct Images<'a> {
    /// `pstree.img`.
    pub(crate) pstree: &'a [u8],
    /// Reads another one.
    pub(crate) read: &'a mut dyn FnMut(&str) -> Vec<u8>,
}

/// A process (`pstree_entry`).
#[derive(Clone, PartialEq, Message)]
struct Process {
    #[prost(uint32, required, tag = "1")]
    pid: u32,
}

/// Which table of descriptors a process has (`task_kobj_ids_entry`).
#[derive(Clone, PartialEq, Message)]
struct Ids {
    #[prost(uint32, required, tag = "2")]
    files: u32,
}

/// A descriptor (`fdinfo_entry`).
#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(uint32, required, tag = "1")]
    file: u32,
    #[prost(uint32, required, tag = "4")]
    number: u32,
}

/// An open file (`file_entry`).
#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(uint32, required, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "18")]
    pipe: Option<Pipe>,
}

/// A pipe (`pipe_entry`).
#[derive(Clone, PartialEq, Message)]
struct Pipe {
    #[prost(uint32, required, tag = "2")]
    inode: u32,
}

impl Images<'_> {
    /// Which of the root's descriptors 0, 1 and 2 are pipes, and how `criu restore --inherit-fd`
    /// names each. What is no pipe comes back by itself.
    pub(crate) fn pipes(&mut self) -> Vec<(RawFd, String)> {
        let Some(root) = first::<Process>(self.pstree) else { return Vec::new() };
        let ids = (self.read)(&format!("ids-{}.img", root.pid));
        let Some(ids) = first::<Ids>(&ids) else { return Vec::new() };
        let descriptors = (self.read)(&format!("fdinfo-{}.img", ids.files));
        let files = (self.read)("files.img");
        let pipes: HashMap<u32, u32> =
            entries::<File>(&files).filter_map(|file| Some((file.id, file.pipe?.inode))).collect();
        let mut inherited: Vec<(u32, u32)> = Vec::new();
        for descriptor in entries::<Descriptor>(&descriptors).filter(|it| it.number <= 2) {
            let is_new = |inode: &&u32| inherited.iter().all(|(_, other)| other != *inode);
            if let Some(inode) = pipes.get(&descriptor.file).filter(is_new) {
                inherited.push((descriptor.number, *inode));
            }
        }
        let name = |(number, inode)| (number as RawFd, format!("pipe:[{inode}]"));
        inherited.into_iter().map(name).collect()
    }
}

/// The entries of one of CRIU's images: two magic numbers, then each behind its length. What
/// cannot be understood is left out.
fn entries<M: Message + Default>(image: &[u8]) -> impl Iterator<Item = M> + '_ {
    const HEAD: usize = 8;

    let mut rest = image.get(HEAD..).unwrap_or_default();
    let bytes = std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let entry = after.get(..length)?;
        rest = after.get(length..).unwrap_or_default();
        Some(entry)
    });
    bytes.filter_map(|entry| M::decode(entry).ok())
}

fn first<M: Message + Default>(image: &[u8]) -> Option<M> {
    entries(image).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image<M: Message>(entries: &[M]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        for entry in entries {
            let entry = entry.encode_to_vec();
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    #[test]
    fn each_pipe_of_the_root_is_given_once() {
        let pstree = image(&[Process { pid: 1 }, Process { pid: 2 }]);
        let pipe = |id, inode| File { id, pipe: Some(Pipe { inode }) };
        let files = [pipe(4, 100), pipe(5, 200), File { id: 6, pipe: None }];
        let descriptor = |number, file| Descriptor { file, number };
        let table = [descriptor(0, 6), descriptor(1, 5), descriptor(2, 5), descriptor(3, 4)];
        let mut read = |name: &str| match name {
            "ids-1.img" => image(&[Ids { files: 7 }]),
            "fdinfo-7.img" => image(&table),
            "files.img" => image(&files),
            _ => Vec::new(),
        };
        let mut images = Images { pstree: &pstree, read: &mut read };
        assert_eq!(images.pipes(), [(1, "pipe:[200]".to_owned())]);
    }

    #[test]
    fn what_is_no_image_gives_nothing() {
        let mut read = |_: &str| b"garbage".to_vec();
        assert!(Images { pstree: b"12345678\xff\xff\xff\xff", read: &mut read }.pipes().is_empty());
    }
}
