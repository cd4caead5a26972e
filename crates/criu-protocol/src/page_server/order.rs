//! What may come after what.

use super::{Command, Memory};
use std::collections::HashSet;
use std::fmt;

/// Follows a connection command by command and refuses what is out of place.
#[derive(Debug, Default)]
pub struct Order {
    open: Option<Memory>,
    seen: HashSet<Memory>,
    closed: bool,
}

/// A command that may not stand where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// Memory is opened that was opened before.
    Again(Memory),
    /// Pages of memory that is not open.
    NotOpen(Memory),
    /// Something after the end.
    AfterClose,
}

impl Order {
    /// Takes the next command. After an error the connection is not CRIU's.
    pub fn accept(&mut self, command: &Command) -> Result<(), OrderError> {
        if self.closed {
            return Err(OrderError::AfterClose);
        }
        match *command {
            Command::HasParent(_) => {}
            Command::Open(memory) => {
                if !self.seen.insert(memory) {
                    return Err(OrderError::Again(memory));
                }
                self.open = Some(memory);
            }
            Command::Pages(memory, _) if self.open != Some(memory) => {
                return Err(OrderError::NotOpen(memory));
            }
            Command::Pages(..) => {}
            Command::Close => self.closed = true,
        }
        Ok(())
    }
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderError::Again(memory) => write!(f, "{memory} comes twice"),
            OrderError::NotOpen(memory) => write!(f, "pages of {memory}, whose turn it is not"),
            OrderError::AfterClose => f.write_str("a command after the last one"),
        }
    }
}

impl std::error::Error for OrderError {}

#[cfg(test)]
mod tests {
    use super::super::{Origin, Run};
    use super::*;

    fn pages(memory: Memory) -> Command {
        let run = Run { start: 0, pages: 1, origin: Origin::Here { lazy: false } };
        Command::Pages(memory, run)
    }

    fn run(commands: &[Command]) -> Result<(), OrderError> {
        let mut order = Order::default();
        commands.iter().try_for_each(|command| order.accept(command))
    }

    const A: Memory = Memory::Task(1);
    const B: Memory = Memory::Segment(1);

    #[test]
    fn what_criu_sends_is_in_order() {
        use Command::*;
        let dump = [Open(B), pages(B), Open(A), pages(A), pages(A), Close];
        assert_eq!(run(&dump), Ok(()));
        let pre_dump = [HasParent(A), HasParent(Memory::Task(2)), Open(A), pages(A), Close];
        assert_eq!(run(&pre_dump), Ok(()));
        assert_eq!(run(&[Close]), Ok(()));
    }

    #[test]
    fn what_is_out_of_place_is_refused() {
        use Command::*;
        assert_eq!(run(&[pages(A)]), Err(OrderError::NotOpen(A)));
        assert_eq!(run(&[Open(A), pages(B)]), Err(OrderError::NotOpen(B)));
        assert_eq!(run(&[Open(A), Open(B), pages(A)]), Err(OrderError::NotOpen(A)));
        assert_eq!(run(&[Open(A), Open(B), Open(A)]), Err(OrderError::Again(A)));
        assert_eq!(run(&[Open(A), Close, Close]), Err(OrderError::AfterClose));
    }
}
