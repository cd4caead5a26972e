//! `victim turns THREADS LAST`

use std::io::Write;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{scope, sleep};
use std::time::Duration;

use crate::Fault;

/// Between two numbers.
const PAUSE: Duration = Duration::from_millis(10);

/// So many threads print 1, 2, 3, … in turn, up to the last number, a line each: a thread waits
/// until the number before its own has been printed.
pub(crate) fn turns(threads: u32, last: u32) -> Result<(), Fault> {
    let (next, turn) = (Mutex::new(1), Condvar::new());
    scope(|scope| {
        for own in 0..threads {
            let (next, turn) = (&next, &turn);
            scope.spawn(move || {
                loop {
                    let guard = next.lock().unwrap_or_else(PoisonError::into_inner);
                    let waits = |next: &mut u32| *next <= last && *next % threads != own;
                    let guard = turn.wait_while(guard, waits);
                    let mut next = guard.unwrap_or_else(PoisonError::into_inner);
                    if *next > last {
                        return;
                    }
                    let mut output = std::io::stdout();
                    let line = format!("{}\n", *next);
                    if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
                        *next = last;
                    }
                    *next += 1;
                    turn.notify_all();
                    // While it is its turn.
                    sleep(PAUSE);
                }
            });
        }
    });
    Ok(())
}
