//! `stand-in-criu restore`

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use tests::page_server::PAGE;

use crate::Fault;
use crate::image::Reader;
use crate::log::Log;
use crate::options::Options;
use crate::scripts;
use crate::steps::reached;

pub(crate) fn restore(options: &Options, log: &Log) -> Result<(), Fault> {
    reached("start", log)?;
    let mut image = Reader::open(options)?;
    reached("connected", log)?;
    image.need("inventory.img")?;
    scripts::run("pre-restore", None, options, log)?;
    image.need("pstree.img")?;
    let words = String::from_utf8(image.need("core-1.img")?)?;
    let words: Vec<&str> = words.split('\0').collect();
    // No image has it, and CRIU asks all the same.
    image.read("cgroup.img")?;
    let length = image.need("mm-1.img")?;
    let length = usize::from_le_bytes(*length.first_chunk().ok_or("no length")?);
    image.need("pagemap-1.img")?;
    let mut memory = image.need("pages-1.img")?;
    // Through a page server come whole pages.
    if memory.len() != length && memory.len() != length.next_multiple_of(PAGE) {
        return Err(format!("{} bytes of memory: not all", memory.len()).into());
    }
    memory.truncate(length);
    reached("pages", log)?;
    let mut made = Made::start(&words, &memory)?;
    reached("made", log)?;
    let pid = made.child.id() as i32;
    if let Some(pidfile) = &options.pidfile {
        fs::write(options.work_dir().join(pidfile), pid.to_string())?;
    }
    reached("asking", log)?;
    scripts::run("post-restore", Some(pid), options, log)?;
    reached("answered", log)?;
    made.let_run()?;
    reached("runs", log)?;
    drop(image);
    scripts::run("post-resume", Some(pid), options, log)?;
    reached("end", log)?;
    if !options.detached {
        made.child.wait()?;
    }
    Ok(())
}

/// A process that is there, and does not run yet: it waits for a byte on its standard input, and
/// ends if that ends.
struct Made {
    child: Child,
}

impl Made {
    fn start(words: &[&str], memory: &[u8]) -> Result<Made, Fault> {
        /// A shell that waits, and then has no input, nor the signals ignored that CRIU ignores.
        const WAITING: &str =
            r#"[ "$(head -c 1)" = y ] && exec env --default-signal "$@" </dev/null"#;

        let (program, arguments) = words.split_first().ok_or("no command line")?;
        let holds = arguments.first() == Some(&"hold");
        let mut command = match holds {
            true => Command::new(program),
            false => {
                let mut shell = Command::new("sh");
                shell.args(["-c", WAITING, "restored", program]);
                shell
            }
        };
        // The environment is not restored. That of the test is not to be in it.
        command.args(arguments).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if holds && arguments.last() != Some(&"--resume") {
            command.arg("--resume");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        if holds {
            child.stdin.as_mut().ok_or("no input")?.write_all(memory)?;
            // It has taken its memory, and found it whole.
            let mut whole = [0];
            let mut output = child.stdout.take().ok_or("no output")?;
            output.read_exact(&mut whole).map_err(|_| "the memory is not whole")?;
        }
        Ok(Made { child })
    }

    fn let_run(&mut self) -> Result<(), Fault> {
        // The end of its input follows.
        self.child.stdin.take().ok_or("no input")?.write_all(b"y")?;
        Ok(())
    }
}
