//! From the command line to the image.

use crate::chain::Chain;
use crate::error::Error;
use crate::{Args, NAME, write};
use cli::{Counters, Descriptors, Failure, Place, Program, Progress, StreamOutput};
use pipe_io::Endpoint;
use pipe_io::inherit::{Direction, raise_descriptor_limit};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    let mut stdin = None;
    if args.images.iter().any(|path| is_stdin(path)) {
        stdin = Some(descriptors.take(&Place::Stdin, Direction::Input)?);
    }
    let stdout = descriptors.take(&Place::Stdout, Direction::Output)?;
    let progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;
    combine(args, stdin, stdout, progress).map_err(Failure::Failed)
}

fn combine(
    args: Args,
    mut stdin: Option<Endpoint>,
    stdout: Endpoint,
    progress: Progress,
) -> Result<(), Error> {
    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    program.attend_signals(&counters).map_err(Error::System)?;
    program.confine();
    // One for each image.
    raise_descriptor_limit();
    let mut chain = Chain::default();
    for path in args.images {
        let (place, endpoint) = match stdin.take_if(|_| is_stdin(&path)) {
            Some(stdin) => (Place::Stdin, stdin),
            None => open(path)?,
        };
        chain.read(&place, endpoint, &Counters::new(1))?;
    }
    let mut output = StreamOutput::new(stdout, Arc::clone(&counters));
    if let Some(id) = chain.id() {
        counters.identify(id);
        output.identify(id);
    }
    write::write(&chain, &mut output)?;
    output.finish()?;
    progress.finished(&counters);
    Ok(())
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Opens an operand. Of a FIFO this waits for the writer.
fn open(path: PathBuf) -> Result<(Place, Endpoint), Error> {
    let place = Place::File { path: path.clone() };
    let failed = |error| Error::Open(place.clone(), error);
    let file = File::open(&path).map_err(failed)?;
    let endpoint = Endpoint::new(file.into()).map_err(|refusal| {
        failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, refusal))
    })?;
    endpoint.grow();
    Ok((place, endpoint))
}
