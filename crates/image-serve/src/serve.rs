//! From the stream to the restored process.

use crate::arrivals::Arrivals;
use crate::error::Error;
use crate::lazy::{Demand, Lazy};
use crate::load::{self, Begun, Loaded};
use crate::remap::{FILES, PortMove, RemapError, remap};
use crate::restore::Restore;
use crate::store::Pipes;
use crate::{Args, NAME};
use cli::{
    Child, Cleanup, Counters, Descriptors, Failure, Place, Program, Progress, StreamInput,
    UsageError,
};
use criu_protocol::{Direction, Listener};
use pipe_io::inherit;
use std::sync::Arc;

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    check_moves(&args.tcp_listen_remap)?;
    let mut descriptors = Descriptors::default();
    let stdin = descriptors.take(&Place::Stdin, inherit::Direction::Input)?;
    let progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;
    let external = descriptors.take_external(args.external, inherit::Direction::Output)?;

    let demand = args.lazy.demand(&stdin, &args.images_dir)?;

    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    let mut child = None;
    let outcome = (|| {
        // Before there is a second thread.
        let keeper = demand.as_ref().map(Demand::keeper).transpose()?;
        program.attend_signals(&counters).map_err(Error::System)?;
        // What is started later may gain privileges: sudo.
        if args.command.command.is_empty() {
            program.confine();
        }
        // Early, so that a directory that cannot be used shows before the image is read.
        let (listener, _socket) = Cleanup::of(|| {
            let listener = Listener::bind(&args.images_dir, Direction::Serve)?;
            let path = listener.path().to_owned();
            Ok((listener, path))
        })
        .map_err(Error::Listen)?;
        let lazy = demand.as_ref().zip(keeper);
        let lazy = lazy.map(|(demand, keeper)| Lazy::listen(demand, keeper)).transpose()?;
        let external = external
            .into_iter()
            .map(|(name, place, endpoint)| (name, (place, Some(endpoint))))
            .collect();
        let input = StreamInput::staged(Place::Stdin, stdin);
        let moves = args.tcp_listen_remap;
        let keep = (!moves.is_empty()).then_some(FILES);
        let pipes = Pipes::new(args.store);
        let loaded = load::load(input, external, pipes, keep, &counters)?;
        let (mut store, input, rest, ballast) = match loaded {
            Loaded::Whole(store, input) => (store, Some(input), None, Vec::new()),
            Loaded::Begun(begun) => {
                let Begun { store, newest, ballast, load } = *begun;
                (store, None, Some((load, newest)), ballast)
            }
        };
        if !moves.is_empty() {
            let moved = store.change(FILES, |files| remap(files, &moves));
            moved.unwrap_or(Err(RemapError::NoFiles)).map_err(Error::Remap)?;
        }
        let late = match (&lazy, &demand, &input) {
            (Some(lazy), Some(demand), Some(input)) => {
                Some(lazy.leave_out(&mut store, input.endpoint(), demand)?)
            }
            _ => None,
        };
        if rest.is_none() {
            program.note(store.census());
            progress.finished(&counters);
        }
        progress.socket_init();
        child = Child::start(NAME, &args.command.command)?;
        program.confine();
        let arrivals = match rest {
            Some((load, newest)) => Some(Arrivals::of(load, newest).map_err(Error::System)?),
            None => None,
        };
        let restore = Restore {
            store,
            image: input.as_ref().map(|input| input.endpoint()),
            arrivals,
            counters: &counters,
            ballast,
            holds_memory: false,
            listener: &listener,
            awaited: args.clients.get(),
            clients: Vec::new(),
            outflows: Vec::new(),
            progress: &progress,
            has_room: false,
            begun: false,
            lazy: lazy.as_ref(),
            no_lock: None,
            failed: None,
        };
        match (&lazy, late) {
            (Some(lazy), Some(late)) => lazy.serve(&late, &progress, || restore.run(&mut child)),
            _ => restore.run(&mut child),
        }
    })();
    // The socket, the image and all that CRIU reads from are closed.
    Child::conclude(child, outcome, Error::is_effect_of_criu_s_end).map_err(Error::into_failure)
}

/// A port cannot move to two others. Two may move to one, if they are of different addresses.
fn check_moves(moves: &[PortMove]) -> Result<(), UsageError> {
    let mut rest = moves;
    while let Some((first, others)) = rest.split_first() {
        if others.iter().any(|other| other.old == first.old) {
            return Err(UsageError::Options("--tcp-listen-remap: names a port twice"));
        }
        rest = others;
    }
    Ok(())
}
