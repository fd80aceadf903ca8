//! Changes that the store does not have yet: what it holds under their keys is not used.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use crate::sync::{Mutex, lock};

/// A key that was invalidated, put or written; or a tag that was invalidated.
#[derive(Clone, Debug)]
pub(super) enum Changed {
    Key(Arc<str>),
    Tag(Arc<str>),
}

/// The changes that the store does not have yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    number: AtomicUsize,
    keys: Mutex<HashMap<Arc<str>, usize>>,
    /// Tags: which values have one is not known before they are read, so that none is used.
    tags: AtomicUsize,
}

impl Pending {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.tags.load(Acquire) > 0
            || self.number.load(Acquire) > 0 && lock(&self.keys).contains_key(key)
    }

    /// Keys and tags.
    pub(super) fn len(&self) -> usize {
        self.number.load(Relaxed) + self.tags.load(Relaxed)
    }

    pub(super) fn add(&self, changed: &Changed) {
        let Changed::Key(key) = changed else {
            self.tags.fetch_add(1, AcqRel);
            return;
        };
        *lock(&self.keys).entry(Arc::clone(key)).or_default() += 1;
        self.number.fetch_add(1, AcqRel);
    }

    pub(super) fn remove(&self, changed: &Changed) {
        let Changed::Key(key) = changed else {
            self.tags.fetch_sub(1, AcqRel);
            return;
        };
        let mut keys = lock(&self.keys);
        if let Some(times) = keys.get_mut(key) {
            *times -= 1;
            if *times == 0 {
                keys.remove(key);
            }
        }
        self.number.fetch_sub(1, AcqRel);
    }
}
