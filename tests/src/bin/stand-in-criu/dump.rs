//! `stand-in-criu dump`

use std::env;

use tests::random::Random;

use crate::Fault;
use crate::image::{Writer, inventory, pstree};
use crate::log::Log;
use crate::options::Options;
use crate::scripts;
use crate::steps::reached;
use crate::tree::{Frozen, command_line, memory};

/// As much memory has the image of a process that is none of ours.
const BYTES: usize = 1 << 20;

pub(crate) fn dump(options: &Options, log: &Log) -> Result<(), Fault> {
    let root = options.tree.ok_or("no --tree")?;
    reached("start", log)?;
    let mut image = Writer::open(options)?;
    reached("connected", log)?;
    scripts::run("pre-dump", Some(root), options, log)?;
    let frozen = Frozen::freeze(root)?;
    // Whatever fails thaws it: by the end of this process, if by nothing else.
    reached("frozen", log)?;
    write(&mut image, root, log)?;
    reached("asking", log)?;
    scripts::run("post-dump", Some(root), options, log)?;
    reached("answered", log)?;
    match options.leave_running {
        true => frozen.thaw(),
        false => frozen.kill(),
    }
    reached("gone", log)?;
    drop(image);
    reached("end", log)
}

/// Lets the process run on before its memory is sent.
pub(crate) fn pre_dump(options: &Options, log: &Log) -> Result<(), Fault> {
    let root = options.tree.ok_or("no --tree")?;
    reached("pre-start", log)?;
    let mut image = Writer::open(options)?;
    scripts::run("pre-dump", Some(root), options, log)?;
    let frozen = Frozen::freeze(root)?;
    reached("pre-frozen", log)?;
    let memory = memory_of(root)?;
    frozen.thaw();
    let half_way = || reached("pre-pages", log);
    match &mut image {
        Writer::Pages(pages) => pages.send(&memory, half_way)?,
        _ => return Err("no --ps-socket".into()),
    }
    image.write("inventory.img", &inventory(), || Ok(()))?;
    reached("pre-end", log)
}

fn memory_of(root: i32) -> Result<Vec<u8>, Fault> {
    let words = command_line(root)?;
    Ok(memory(root, &words)?.unwrap_or_else(|| Random::new(root as u64).bytes(bytes())))
}

fn write(image: &mut Writer, root: i32, log: &Log) -> Result<(), Fault> {
    let words = command_line(root)?;
    let memory = memory_of(root)?;
    let nothing_more = || Ok(());
    image.write("core-1.img", words.join("\0").as_bytes(), nothing_more)?;
    // How much of the last page is memory.
    image.write("mm-1.img", &memory.len().to_le_bytes(), nothing_more)?;
    let half_way = || reached("pages", log);
    match image {
        Writer::Pages(pages) => pages.send(&memory, half_way)?,
        _ => {
            image.write("pagemap-1.img", &memory.len().to_le_bytes(), nothing_more)?;
            image.write("pages-1.img", &memory, half_way)?;
        }
    }
    image.write("pstree.img", &pstree(root), nothing_more)?;
    image.write("inventory.img", &inventory(), nothing_more)?;
    reached("inventory", log)
}

fn bytes() -> usize {
    env::var("STAND_IN_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(BYTES)
}
