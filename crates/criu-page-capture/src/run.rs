//! From the command line to the capture.

use crate::around::Around;
use crate::capture::Capture;
use crate::entrance::{Entrance, Place as Whence};
use crate::error::Error;
use crate::files::Files;
use crate::{Args, NAME};
use cli::{
    Child, Counters, Descriptors, Failure, Place, Program, Progress, StreamOutput, UsageError,
    new_image_id,
};
use criu_protocol::page_server::Order;
use pipe_io::Endpoint;
use pipe_io::inherit::Direction;
use std::collections::HashSet;
use std::sync::Arc;

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let whence = match (args.listen, &args.socket) {
        (Some(address), _) => Whence::Tcp(address.0),
        (None, Some(path)) => Whence::Unix(path.clone()),
        (None, None) if !args.command.is_empty() => Whence::Inherited,
        (None, None) => {
            let message = "one of --listen, --socket and a COMMAND is needed";
            return Err(UsageError::Options(message).into());
        }
    };
    let mut descriptors = Descriptors::default();
    let stdout = descriptors.take(&Place::Stdout, Direction::Output)?;
    let progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;
    capture(args, whence, stdout, progress).map_err(Error::into_failure)
}

fn capture(args: Args, whence: Whence, stdout: Endpoint, progress: Progress) -> Result<(), Error> {
    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    program.attend_signals(&counters).map_err(Error::System)?;
    let files = Files::watch(args.images_dir)?;
    let mut entrance = Entrance::open(whence, program)?;
    let image_id = args.image_id.map_or_else(new_image_id, Ok).map_err(Error::System)?;
    counters.identify(image_id);
    let mut output = StreamOutput::new(stdout, Arc::clone(&counters));
    output.identify(image_id);
    if let Some(parent) = args.parent {
        output.descend_from(parent);
    }
    progress.socket_init();
    let child = Child::start(NAME, &entrance.fill_in(args.command))?;
    if entrance.command_was_started() {
        child.iter().for_each(Child::connected);
    }
    program.confine();
    let mut around = Around::new(files, child, progress);
    let outcome = entrance.admit(&mut around, output.endpoint()).and_then(|wire| {
        around.child.iter().for_each(Child::connected);
        let mut capture = Capture {
            wire,
            around: &mut around,
            output,
            id: image_id,
            parent: args.parent,
            end_at_inventory: args.end_at_inventory,
            order: Order::default(),
            incoming: None,
            pages_id: 0,
            names: HashSet::new(),
            begun: false,
        };
        capture.run()?;
        capture.output.finish()?;
        around.files.note_image(image_id)?;
        around.progress.finished(&counters);
        Ok(())
    });
    // All of the capture is closed: what CRIU still sends fails, and its dump does.
    Child::conclude(around.child, outcome, Error::is_effect_of_criu_s_end)
}
