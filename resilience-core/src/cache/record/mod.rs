//! The record of one key in a store, as a pure state machine. Every store acts as this one does.
//!
//! ```text
//! ABSENT --lease--> LEASED --fill--> VALUE --lease--> VALUE + LEASE (stale value kept) --fill--> VALUE
//!    ^                 |release        |                     |
//!    +-----------------+               +------ invalidate ---+--> TOMBSTONE --time--> ABSENT
//! any --begin_write--> WRITING(token) --end_write--> VALUE, or TOMBSTONE when in doubt
//! ```
//!
//! A fill is stored only while the record holds the token of its lease. Whatever happened to the key in between
//! (an invalidation, another value, a flush) has removed the token, so a slow loader never brings an old value back. A
//! tombstone refuses new leases for a while: a loader that reads from a replica would read the old value once more.
//!
//! # References
//! Leases against stale sets and thundering herds: Nishtala et al., [Scaling Memcache at
//! Facebook](https://www.usenix.org/conference/nsdi13/technical-sessions/presentation/nishtala), section 3.2.1 (NSDI 2013).

mod messages;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;

pub use self::messages::{Entry, Fill, Generation, Lease, Leased, Stored, TagGeneration, Token};

/// Milliseconds by which a store's clock may go back without notice. A moment further ahead than its own length and
/// this was noted before the clock was set back, and counts as over.
pub const SLACK_MS: u64 = 1_000;

/// The record of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    content: Content,
    lease: Option<Held>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Content {
    #[default]
    Nothing,
    Value(Value),
    Tombstone {
        until: End,
        /// The write that is in progress, if it is the only one.
        writer: Option<Token>,
        /// Whether there is one at all.
        writing: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Value {
    version: Token,
    stored_at: u64,
    fill: Fill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    token: Token,
    until: End,
}

/// A moment of the store's clock, and the length that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    at: u64,
    length: u64,
}

impl End {
    const fn new(now: u64, length: u64) -> Self {
        let at = now.saturating_add(length);
        Self { at, length }
    }

    /// Time left; zero also when the clock was set back since.
    const fn left(self, now: u64) -> u64 {
        let left = self.at.saturating_sub(now);
        if left > self.length.saturating_add(SLACK_MS) {
            0
        } else if left > self.length {
            self.length
        } else {
            left
        }
    }
}

impl Value {
    /// Time since it was stored. A clock that was set back since makes it stale: how old it is cannot be known.
    const fn age(&self, now: u64) -> u64 {
        if self.stored_at > now.saturating_add(SLACK_MS) {
            self.fill.fresh_ms
        } else {
            now.saturating_sub(self.stored_at)
        }
    }

    fn entry(&self, now: u64) -> Entry {
        Entry {
            version: self.version,
            body: self.fill.body.clone(),
            age_ms: self.age(now),
            fresh_ms: self.fill.fresh_ms,
            keep_ms: self.fill.keep_ms,
            load_ms: self.fill.load_ms,
            tags: Arc::clone(&self.fill.tags),
        }
    }
}

impl Record {
    /// The value, if there is one at `now`. All times are milliseconds of the store's clock.
    #[must_use]
    pub fn get(&self, now: u64) -> Option<Entry> {
        match &self.content {
            Content::Value(value) if value.age(now) < value.fill.keep_ms => Some(value.entry(now)),
            _ => None,
        }
    }

    /// Asks to load the key. May be repeated, but not after the load has begun: a lease that was lost is granted again.
    /// [`extend`](Self::extend) is for that.
    pub fn lease(&mut self, now: u64, asked: &Lease) -> Leased {
        match &self.content {
            Content::Tombstone { until, .. } if until.left(now) > 0 => {
                let left_ms = until.left(now);
                return Leased::Refused { left_ms };
            }
            _ => {}
        }
        let entry = self.get(now);
        let is_another = |held: &Held| held.token != asked.token && held.until.left(now) > 0;
        let held = self.lease.filter(is_another);
        match (entry, held) {
            (Some(entry), _) if entry.is_fresh() && asked.renew != Some(entry.version) => {
                Leased::Fresh(entry)
            }
            (stale, Some(held)) => {
                let left_ms = held.until.left(now);
                Leased::Held { left_ms, stale }
            }
            (stale, None) => {
                // LEASED, or VALUE + LEASE
                self.expire(now);
                let until = End::new(now, asked.lease_ms);
                let token = asked.token;
                self.lease = Some(Held { token, until });
                Leased::Granted { stale }
            }
        }
    }

    /// Stores what the holder of the lease `token` has loaded. May be repeated.
    pub fn fill(&mut self, now: u64, token: Token, fill: &Fill) -> Stored {
        if self.is_filled_by(token) {
            return Stored::Stored;
        }
        if self.lease.is_none_or(|held| held.token != token) {
            return Stored::Refused;
        }
        self.store(now, token, fill);
        Stored::Stored
    }

    /// Renews the lease `token` for `lease_ms` from now. [`Stored::Refused`]: it is gone, and so is the right to fill; it is not
    /// granted again, since what was loaded under it may be older than what has removed it. May be repeated.
    pub fn extend(&mut self, now: u64, token: Token, lease_ms: u64) -> Stored {
        match &mut self.lease {
            Some(held) if held.token == token => {
                held.until = End::new(now, lease_ms);
                Stored::Stored
            }
            _ => Stored::Refused,
        }
    }

    /// Gives a lease back without a value: the loader failed. May be repeated.
    pub fn release(&mut self, token: Token) {
        if self.lease.is_some_and(|held| held.token == token) {
            self.lease = None;
        }
    }

    /// Stores a value that the caller knows to be the latest. Refused only while a [write](Self::begin_write) is in
    /// progress. Not to be repeated: another caller may have stored a later one meanwhile.
    pub fn put(&mut self, now: u64, version: Token, fill: &Fill) -> Stored {
        self.expire(now);
        if let Content::Tombstone { writing: true, .. } = self.content {
            return Stored::Refused;
        }
        self.store(now, version, fill);
        Stored::Stored
    }

    /// Removes the value, and refuses leases and fills for `tombstone_ms` from now. Fills of leases granted before are
    /// refused for good. May be repeated.
    pub fn invalidate(&mut self, now: u64, tombstone_ms: u64) {
        self.expire(now);
        let until = End::new(now, tombstone_ms);
        self.lease = None;
        self.content = match self.content {
            // An earlier one may last longer. A write in progress does not know of the change behind this invalidation.
            Content::Tombstone {
                until: former,
                writing,
                ..
            } => Content::Tombstone {
                until: later(former, until, now),
                writer: None,
                writing,
            },
            _ if tombstone_ms == 0 => Content::Nothing,
            _ => Content::Tombstone {
                until,
                writer: None,
                writing: false,
            },
        };
    }

    /// Announces that the truth behind the key is about to change, for at most `write_ms`. End then, or until
    /// [`end_write`](Self::end_write), nothing is stored under the key. May be repeated.
    pub fn begin_write(&mut self, now: u64, token: Token, write_ms: u64) {
        self.expire(now);
        let until = End::new(now, write_ms);
        let (until, writer) = match self.content {
            Content::Tombstone {
                until: former,
                writer,
                writing: true,
            } => {
                // Of two writes at once it is not known which is the last.
                let alone = writer == Some(token);
                (later(former, until, now), alone.then_some(token))
            }
            _ => (until, Some(token)),
        };
        self.lease = None;
        self.content = Content::Tombstone {
            until,
            writer,
            writing: true,
        };
    }

    /// Ends a write: stores the value if this write was the only one since it began, and leaves an invalidation otherwise.
    /// `None`: it is not known whether the truth has changed. May be repeated.
    pub fn end_write(
        &mut self,
        now: u64,
        token: Token,
        fill: Option<&Fill>,
        tombstone_ms: u64,
    ) -> Stored {
        if self.is_filled_by(token) {
            return Stored::Stored;
        }
        self.expire(now);
        let alone = matches!(
            self.content,
            Content::Tombstone { writer: Some(writer), .. } if writer == token
        );
        match fill {
            // WRITING => VALUE
            Some(fill) if alone => {
                self.store(now, token, fill);
                Stored::Stored
            }
            // WRITING => TOMBSTONE
            _ => {
                if alone {
                    self.content = Content::Nothing;
                }
                self.invalidate(now, tombstone_ms);
                Stored::Refused
            }
        }
    }

    /// Milliseconds from `now` until the record is absent: what a store gives the key as its time to live. `None`: it is.
    #[must_use]
    pub fn left(&self, now: u64) -> Option<u64> {
        let content = match &self.content {
            Content::Nothing => 0,
            Content::Value(value) => value.fill.keep_ms.saturating_sub(value.age(now)),
            Content::Tombstone { until, .. } => until.left(now),
        };
        let lease = self.lease.map_or(0, |held| held.until.left(now));
        let left = content.max(lease);
        (left > 0).then_some(left)
    }

    fn store(&mut self, now: u64, version: Token, fill: &Fill) {
        self.lease = None;
        self.content = Content::Value(Value {
            version,
            stored_at: now,
            fill: fill.clone(),
        });
    }

    fn is_filled_by(&self, token: Token) -> bool {
        matches!(&self.content, Content::Value(value) if value.version == token)
    }

    /// Removes content that is over, in steps that change the record: a refusal leaves it as it is. A lease that is over stays
    /// its holder's until the record is changed.
    fn expire(&mut self, now: u64) {
        let is_over = match &self.content {
            Content::Nothing => false,
            Content::Value(value) => value.age(now) >= value.fill.keep_ms,
            Content::Tombstone { until, .. } => until.left(now) == 0,
        };
        if is_over {
            self.content = Content::Nothing;
        }
    }
}

const fn later(one: End, other: End, now: u64) -> End {
    if one.left(now) > other.left(now) {
        one
    } else {
        other
    }
}
