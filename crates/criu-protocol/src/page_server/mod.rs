//! CRIU's page server protocol: all memory over one connection (docs/design.md section 9).
//!
//! `criu dump --page-server` connects, says what memory each run of pages belongs to, and lets the
//! pages follow. There is no version in it, but two layouts of a command, by which releases differ:
//! the first command tells them apart ([`Layout::of`]). [`Command`] is one command, checked as far
//! as it can be by itself; [`Order`] checks what comes after what.

mod command;
mod order;
mod peer;

pub use command::{Command, CommandError, HEADER_MAX, HEADER_MIN, Layout, Memory, Origin, Run};
pub use order::{Order, OrderError};
pub use peer::is_believed;
