//! The values that a process keeps of a store, and the smallest rule that is right: a value is kept if nothing that it may
//! depend on has changed since before it was asked for.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use resilience_core::cache::store::Observer;

/// Values by number; see [`CacheStore::id`](resilience_core::cache::CacheStore::id).
#[derive(Debug)]
pub struct LocalValues<V>(Mutex<State<V>>);

/// What was told, and what is kept.
#[derive(Clone, Debug)]
pub struct State<V> {
    /// Whether changes are told.
    pub is_told: bool,
    /// Number of times that changes were not told any longer.
    pub lost: usize,
    /// Number of times that they were told again.
    pub restored: usize,
    /// Number of times that everything may have changed.
    pub cleared: usize,
    changes: HashMap<u64, u64>,
    values: HashMap<u64, V>,
}

/// What was true before a value was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: usize,
    changes: u64,
}

impl<V> Default for LocalValues<V> {
    fn default() -> Self {
        Self(Mutex::new(State {
            is_told: false,
            lost: 0,
            restored: 0,
            cleared: 0,
            changes: HashMap::new(),
            values: HashMap::new(),
        }))
    }
}

impl<V: Clone> LocalValues<V> {
    /// What is true now. Locked until it is dropped.
    pub fn state(&self) -> MutexGuard<'_, State<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws a ticket for what is about to be asked for.
    pub fn ticket(&self, id: u64) -> Ticket {
        self.state().ticket(id)
    }

    /// Keeps a value, unless it may have changed since the ticket was drawn.
    pub fn insert(&self, id: u64, ticket: Ticket, value: V) {
        let mut state = self.state();
        if state.is_told && ticket == state.ticket(id) {
            state.values.insert(id, value);
        }
    }

    /// The value that may be served without asking the store.
    pub fn get(&self, id: u64) -> Option<V> {
        self.state().values.get(&id).cloned()
    }
}

impl<V> State<V> {
    fn ticket(&self, id: u64) -> Ticket {
        Ticket {
            epoch: self.lost + self.restored + self.cleared,
            changes: self.changes.get(&id).copied().unwrap_or(0),
        }
    }
}

impl<V: Clone + Send> Observer for LocalValues<V> {
    fn changed(&self, id: u64) {
        let mut state = self.state();
        *state.changes.entry(id).or_default() += 1;
        state.values.remove(&id);
    }

    fn cleared(&self) {
        let mut state = self.state();
        state.cleared += 1;
        state.values.clear();
    }

    fn lost(&self) {
        let mut state = self.state();
        assert!(state.is_told, "lost twice");
        state.is_told = false;
        state.lost += 1;
        state.values.clear();
    }

    fn restored(&self) {
        let mut state = self.state();
        assert!(!state.is_told, "restored twice");
        state.is_told = true;
        state.restored += 1;
        state.values.clear();
    }
}
