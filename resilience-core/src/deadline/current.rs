//! The deadline that travels with a task: a thread-local cell that is swapped in around each poll.

use std::{
    cell::Cell,
    fmt,
    num::NonZeroU64,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::clock::{Clock, Moment};

/// Moment by which a call must be over, with the clock that measures it. One word, `Copy`.
///
/// It is a value, not a timer, and cuts nothing off by itself. [`TimeoutLayer`] enforces it, retry reads it before it
/// sleeps, and an outbound HTTP client passes the remainder on.
///
/// [`TimeoutLayer`]: super::TimeoutLayer
// Nanoseconds, then a bit for the clock, then a bit that is set, so that `Option<Deadline>` is one word too. A struct of
// two fields would be written field by field and read back as a whole, which is slow on the processor.
#[derive(Clone, Copy)]
pub struct Deadline(NonZeroU64);

/// 146 years after the clock's zero: never.
const NEVER: u64 = u64::MAX >> 2;
const TOKIO: u64 = 0b10;

impl Deadline {
    /// The moment `wait` from now, on the clock of the [`current`] deadline, or else on [`Clock::auto`].
    ///
    /// Saturates at 146 years.
    #[must_use]
    pub fn after(wait: Duration) -> Self {
        let clock = current().map_or_else(Clock::auto, Self::clock);
        Self::at(clock.now() + wait, clock)
    }

    /// The moment `at`, which was read from `clock`.
    #[inline]
    #[must_use]
    pub const fn at(at: Moment, clock: Clock) -> Self {
        let nanos = at.as_nanos();
        let nanos = if nanos < NEVER { nanos } else { NEVER };
        let clock = if clock.is_tokio() { TOKIO } else { 0 };
        Self(NonZeroU64::MIN.saturating_add(nanos << 2 | clock))
    }

    /// The moment itself, on [`clock`](Self::clock).
    #[inline]
    #[must_use]
    pub const fn moment(self) -> Moment {
        Moment::from_nanos(self.0.get() >> 2)
    }

    /// The clock that measures it.
    #[inline]
    #[must_use]
    pub const fn clock(self) -> Clock {
        Clock::from_is_tokio(self.0.get() & TOKIO != 0)
    }

    /// The time left; zero once it is past. Reads the clock.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.moment().since(self.clock().now())
    }

    /// Whether no time is left. Reads the clock.
    #[must_use]
    pub fn is_past(self) -> bool {
        self.clock().now() >= self.moment()
    }

    /// The same moment for tokio's timers. Reads both clocks.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.clock().instant(self.moment())
    }

    /// The earlier of the two. Deadlines on different clocks are compared by what is left of them.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if other.is_before(self) { other } else { self }
    }

    /// The later of the two. Deadlines on different clocks are compared by what is left of them.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.is_before(self) { self } else { other }
    }

    fn is_before(self, other: Self) -> bool {
        if self.clock() == other.clock() {
            self.moment() < other.moment()
        } else {
            self.remaining() < other.remaining()
        }
    }

    /// This deadline, at most now: timers and clocks agree only to within a few microseconds, and a future that is
    /// dropped because its timer has fired must not read that time is left.
    pub(super) fn expired(self) -> Self {
        let now = self.clock().now();
        Self::at(self.moment().min(now), self.clock())
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deadline(in {:?})", self.remaining())
    }
}

thread_local! {
    static CURRENT: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// Returns the deadline of the running code: that of the innermost [`scope`] or timeout layer around it.
///
/// Visible in everything that the scoped future polls itself, for every request type; not in tasks that it spawns
/// ([`inherit`] carries it there), nor on blocking threads. Costs about a nanosecond and reads no clock.
#[inline]
#[must_use]
pub fn current() -> Option<Deadline> {
    CURRENT.get()
}

/// Sets the current deadline until the guard is dropped, in unwinding too.
#[inline]
pub(crate) fn enter(deadline: Option<Deadline>) -> Entered {
    Entered(CURRENT.replace(deadline))
}

/// Puts the outer deadline back.
#[must_use]
pub(crate) struct Entered(Option<Deadline>);

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Makes `deadline` the [`current`] one while `future` is polled and while it is dropped.
///
/// Inside another scope the earlier of the two applies, so a scope can shorten the time left but never extend it. It
/// does not end anything: use a [`TimeoutLayer`](super::TimeoutLayer) inside, or
/// `tokio::time::timeout_at(deadline.instant(), ..)`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use resilience_core::{Deadline, deadline};
///
/// let left = deadline::scope(Deadline::after(Duration::from_secs(2)), async {
///     deadline::current().map(Deadline::remaining)
/// });
/// assert!(left.await.is_some_and(|left| left <= Duration::from_secs(2)));
/// assert!(deadline::current().is_none());
/// # }
/// ```
pub const fn scope<F>(deadline: Deadline, future: F) -> Scope<F> {
    Scope {
        future: Some(future),
        deadline: Some(deadline),
    }
}

/// Makes `deadline` the [`current`] one while the function `work` runs, e.g. around the `call` of an inner service, which
/// reads the deadline there.
///
/// Inside another scope the earlier of the two applies.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Deadline, deadline};
///
/// let told = deadline::sync_scope(Deadline::after(Duration::from_secs(2)), deadline::current);
/// assert!(told.is_some());
/// assert!(deadline::current().is_none());
/// ```
pub fn sync_scope<T>(deadline: Deadline, work: impl FnOnce() -> T) -> T {
    let _scope = enter(earlier(Some(deadline), current()));
    work()
}

/// Carries the [`current`] deadline into a future that another task runs:
/// `tokio::spawn(deadline::inherit(work))`. Without a current deadline it changes nothing.
///
/// Not for work that continues after the call.
pub fn inherit<F>(future: F) -> Scope<F> {
    Scope {
        future: Some(future),
        deadline: current(),
    }
}

pin_project! {
    /// A future with a deadline around it. See [`scope`] and [`inherit`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Scope<F> {
        #[pin]
        future: Option<F>,
        deadline: Option<Deadline>,
    }

    impl<F> PinnedDrop for Scope<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                let _scope = enter(earlier(*this.deadline, current()));
                this.future.set(None);
            }
        }
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _scope = enter(earlier(*this.deadline, current()));
        let future = this.future.as_mut().as_pin_mut();
        let polled = future.expect("polled after completion").poll(cx);
        if polled.is_ready() {
            this.future.set(None);
        }
        polled
    }
}

/// The earlier of two deadlines that may be missing.
#[inline]
pub(super) fn earlier(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
    match (one, other) {
        (Some(one), Some(other)) => Some(earlier_of_two(one, other)),
        (one, other) => one.or(other),
    }
}

/// May have to read two clocks; out of the way of calls with one deadline.
#[inline(never)]
fn earlier_of_two(one: Deadline, other: Deadline) -> Deadline {
    one.min(other)
}

/// The end of a wait of at most `max_wait` that begins now: at the latest one tick of tokio's timers before the current
/// deadline, so that the outer deadline layer receives a rejection and not a timeout that looks like the dependency's.
pub(crate) fn before_deadline(max_wait: Duration) -> Instant {
    before(current(), max_wait)
}

/// As [`before_deadline`], for a call with this deadline.
pub(crate) fn before(deadline: Option<Deadline>, max_wait: Duration) -> Instant {
    const MARGIN: Duration = Duration::from_millis(1);
    // As tokio has it: 30 years.
    const FOREVER: Duration = Duration::from_secs(86_400 * 365 * 30);
    let now = Instant::now();
    let until = now.checked_add(max_wait).unwrap_or(now + FOREVER);
    match deadline {
        Some(deadline) => {
            let last = deadline.instant().checked_sub(MARGIN);
            until.min(last.unwrap_or(now))
        }
        None => until,
    }
}
