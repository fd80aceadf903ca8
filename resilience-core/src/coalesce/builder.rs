//! The builder of a [`Coalesce`].

use std::{fmt, hash::Hash, marker::PhantomData, sync::Arc, time::Duration};

use super::{
    Coalesce, FlightOptions,
    shared::{ShareError, Shared},
};
use crate::{clock::Clock, error::InvalidConfig};

/// Builder of a [`Coalesce`].
///
/// # Default
/// Calls younger than one second are joined, by at most 1,024 callers each; after an error, callers that joined begin again
/// once.
#[must_use]
pub struct CoalesceBuilder<K, T, E> {
    name: Arc<str>,
    max_age: Option<Duration>,
    max_waiters: usize,
    min_time: Option<Duration>,
    share_error: Option<ShareError<E>>,
    clock: Option<Clock>,
    types: PhantomData<fn() -> (K, T)>,
}

impl<K, T, E> CoalesceBuilder<K, T, E> {
    pub(super) const fn new(name: Arc<str>) -> Self {
        Self {
            name,
            max_age: Some(Duration::from_secs(1)),
            max_waiters: 1024,
            min_time: None,
            share_error: None,
            clock: None,
            types: PhantomData,
        }
    }

    /// Sets the age from which on a call is not joined any more: the next caller starts another one, which later callers join.
    /// Default: 1 s.
    ///
    /// A few times the usual duration of a call is a good value. At most one call per key and `max_age` is made beside those that
    /// are still in progress.
    pub const fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Lets callers join a call however old it is. The calls should have a time limit of their own.
    pub const fn any_age(mut self) -> Self {
        self.max_age = None;
        self
    }

    /// Sets the maximum number of callers that wait for one call, the one that started it included. The next caller starts
    /// another call, which later ones join. Default: 1,024.
    pub const fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// Sets a minimum for the time that a call has, from its start, however little its first caller has left. Default: none.
    ///
    /// Layers below that read the [deadline](crate::deadline) only when they are called see at least that much time. The
    /// call still ends when all of its callers are gone.
    pub const fn min_time(mut self, min_time: Duration) -> Self {
        self.min_time = Some(min_time);
        self
    }

    /// Gives all callers of a failed call a copy of its error, made by `copy`, instead of letting those that joined it begin
    /// again: `.share_errors(MyError::clone)`.
    ///
    /// For errors that a second call would meet too. One unlucky call then fails all of its callers.
    pub fn share_errors(mut self, copy: impl Fn(&E) -> E + Send + Sync + 'static) -> Self {
        self.share_error = Some(Box::new(copy));
        self
    }

    /// Sets the clock that measures ages. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the handle.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn build(self) -> Result<Coalesce<K, T, E>, InvalidConfig>
    where
        K: Hash + Eq + Send + Sync + 'static,
        T: Clone + Send + 'static,
        E: Send + 'static,
    {
        let positive = "must be above zero";
        if self.max_age == Some(Duration::ZERO) {
            return Err(InvalidConfig::new("max_age", Duration::ZERO, positive));
        }
        if self.max_waiters == 0 {
            return Err(InvalidConfig::new("max_waiters", 0, positive));
        }
        if self.min_time == Some(Duration::ZERO) {
            return Err(InvalidConfig::new("min_time", Duration::ZERO, positive));
        }
        let options = FlightOptions {
            max_age: self.max_age,
            max_waiters: self.max_waiters,
            min_time: self.min_time,
            clock: self.clock.unwrap_or_default(),
        };
        let shared = Arc::new(Shared::new(self.name, options, self.share_error));
        Ok(Coalesce { shared })
    }
}

impl<K, T, E> fmt::Debug for CoalesceBuilder<K, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoalesceBuilder")
            .field("name", &self.name)
            .field("max_age", &self.max_age)
            .field("max_waiters", &self.max_waiters)
            .field("min_time", &self.min_time)
            .field("shares_errors", &self.share_error.is_some())
            .finish_non_exhaustive()
    }
}
