//! What holds a process while its image is made safe.
pub mod archive;
pub mod cause;
pub mod checkpoint;
pub mod criu_log;
pub mod criu_options;
pub mod events;
pub mod family;
pub mod filters;
pub mod front;
pub mod gate;
mod holder;
pub mod ids;
pub mod restore;
pub mod scratch;
pub mod shell;
mod stdio;
pub mod tell;
pub mod tree;
