//! The attempt that the running code belongs to: a thread-local cell that is swapped in around each poll.

use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<u32> = const { Cell::new(1) };
}

/// Returns the number of the current attempt, counted from 1 by the innermost retry layer; 1 outside of any.
///
/// Visible in code that the attempt polls itself, not in tasks that it spawns.
#[inline]
#[must_use]
pub fn attempt() -> u32 {
    CURRENT.get()
}

/// Sets the number until the guard is dropped, in unwinding too.
#[inline]
pub(super) fn enter(attempt: u32) -> Entered {
    Entered(CURRENT.replace(attempt))
}

#[must_use]
pub(super) struct Entered(u32);

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
