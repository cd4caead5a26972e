//! The user's COMMAND, as the user's own shell would run it.
//!
//! It gets our caller's environment, descriptors, signals and directory, and what its page
//! documents: `SHARD`, `SHARDS`, `IMAGE_ID` and `PARENT_ID`. Nothing else is in it that is ours.

use pipe_io::process;
use std::env;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use wire_format::ImageId;

/// The shell that runs COMMANDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shell {
    /// `bash -o pipefail -c`: a COMMAND fails if one of its stages does.
    Bash(PathBuf),
    /// `sh -c`, where there is no bash: only the last stage counts.
    Sh,
}

/// Which part of an image a COMMAND has, and of which image.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its number and how many there are, if there are several.
    pub shard: Option<(usize, usize)>,
    /// The image, where it is known.
    pub image: Option<ImageId>,
    /// The image that it is an increment of, if it is one.
    pub parent: Option<ImageId>,
}

impl Shell {
    /// bash if it is in `PATH`.
    pub fn find() -> Shell {
        find_program("bash").map_or(Shell::Sh, Shell::Bash)
    }

    /// COMMAND, to be started in a session of its own. `given` are the descriptors that the caller
    /// of this function sets.
    pub fn command(&self, text: &str, part: Part, given: &'static [RawFd]) -> Command {
        let mut command = match self {
            Shell::Bash(path) => {
                let mut bash = Command::new(path);
                bash.args(["-o", "pipefail"]);
                bash
            }
            Shell::Sh => Command::new("/bin/sh"),
        };
        command.arg("-c").arg(text);
        // Those of an outer run would name a part of another image.
        for name in ["SHARD", "SHARDS", "IMAGE_ID", "PARENT_ID"] {
            command.env_remove(name);
        }
        if let Some((index, count)) = part.shard {
            command.env("SHARD", index.to_string()).env("SHARDS", count.to_string());
        }
        if let Some(image) = part.image {
            command.env("IMAGE_ID", image.to_string());
        }
        if let Some(parent) = part.parent {
            command.env("PARENT_ID", parent.to_string());
        }
        process::as_our_caller(&mut command, given);
        process::in_a_new_session(&mut command);
        process::with_us(&mut command);
        command
    }
}

/// Whether a COMMAND that is run once for each shard tells them apart: it names `SHARD` (or
/// `SHARDS`, which is no way to, but none that we could judge either).
pub fn mentions_shard(command: &str) -> bool {
    command.contains("SHARD")
}

/// The CRIU to use: what the environment says in `CRIU`, or the one in `PATH`.
pub fn criu_to_use() -> String {
    env::var("CRIU").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "criu".into())
}

/// A program by its name or path, as a shell finds it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    // What a shell has where there is none.
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    env::split_paths(&path).map(|directory| directory.join(name)).find(is_program)
}

/// One of our filters: beside this program, else in `PATH`.
pub fn find_filter(name: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|path| Some(path.parent()?.join(name)));
    beside.filter(|path| path.is_file()).or_else(|| find_program(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_fails_fails_the_command_where_there_is_bash() {
        let part = Part { shard: None, image: None, parent: None };
        let status = Shell::find().command("false | true", part, &[]).status().unwrap();
        assert_eq!(status.success(), Shell::find() == Shell::Sh);
    }

    #[test]
    fn a_part_of_an_outer_run_is_not_seen() {
        let text = r#"[ "$SHARD/$SHARDS/$IMAGE_ID" = 1/2/ ]"#;
        let part = |shard| Part { shard, image: None, parent: None };
        let mut command = Shell::Sh.command(text, part(Some((1, 2))), &[]);
        assert!(command.status().unwrap().success());
        let mut alone = Shell::Sh.command(text, part(None), &[]);
        assert!(!alone.status().unwrap().success());
    }
}
