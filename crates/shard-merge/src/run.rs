//! From the command line to the merge.

use crate::{Args, NAME};
use cli::{Commands, Counters, Descriptors, Failure, Place, Progress, ShardPlan, StreamOutput};
use pipe_io::inherit::Direction;
use shard_merge::{Error, Merge};
use std::sync::Arc;

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let Args { shard_fds, inputs, shards, filter, common } = args;
    let plan = ShardPlan::new(&shard_fds, inputs, shards, filter, 0);
    let mut descriptors = Descriptors::default();
    let mut ends = descriptors.take_shards(plan.fds().iter().copied(), Direction::Input)?;
    let stdout = descriptors.take(&Place::Stdout, Direction::Output)?;
    let progress = Progress::open(common.progress_fd.0, &mut descriptors)?;

    let begun = plan.begin(NAME, common.verbose);
    let (program, counters) = begun.map_err(|error| Failure::Failed(Error::System(error)))?;
    ends.extend(
        plan.open_inputs(&mut descriptors).map_err(|error| error.into_failure(Error::open))?,
    );

    let merge = || {
        let mut commands = Commands::default();
        if let ShardPlan::Filter { count, command } = &plan {
            (commands, ends) =
                Commands::start(*count, command, Direction::Input, None).map_err(Error::Command)?;
        }
        let output = StreamOutput::new(stdout, Arc::new(Counters::new(1)));
        let mut merge = Merge::new(program, ends, output, &counters);
        // The status of a command says more than the shard that it left unfinished.
        merge.run().map_err(|error| match (&error, commands.to_blame()) {
            (Error::Output(_), _) | (_, None) => error,
            (_, Some(blamed)) => Error::Command(blamed),
        })?;
        // A decompressor tells only by its status whether all was well.
        commands.wait(|_| ()).map_err(Error::Command)?;
        // Who waits for this line must not see the image end before it.
        progress.finished(&counters);
        merge.finish()
    };
    merge().map_err(Failure::Failed)
}
