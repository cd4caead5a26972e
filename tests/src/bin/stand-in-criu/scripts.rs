//! Action scripts: executed as they are, as CRIU 4 does, one after the other.

use std::env;
use std::process::{Command, Stdio};

use crate::Fault;
use crate::log::Log;
use crate::options::Options;

/// Runs all of them for this stage; one that fails is a failure.
pub(crate) fn run(
    stage: &str,
    root: Option<i32>,
    options: &Options,
    log: &Log,
) -> Result<(), Fault> {
    let images_dir = env::current_dir()?.join(&options.images_dir);
    let mut failed = false;
    for script in &options.scripts {
        log.say(&format!("Running {stage} script {script}"));
        let mut command = Command::new(script);
        command.env("CRTOOLS_SCRIPT_ACTION", stage).env("CRTOOLS_IMAGE_DIR", &images_dir);
        if let Some(root) = root {
            command.env("CRTOOLS_INIT_PID", root.to_string());
        }
        // CRIU's descriptors are in its scripts, but for standard input.
        let ended = command.stdin(Stdio::null()).status();
        failed |= !ended.is_ok_and(|status| status.success());
    }
    match failed {
        true => Err("One of more action scripts failed".into()),
        false => Ok(()),
    }
}
