//! The most requested keys.
//!
//! # References
//! Space-saving: Metwally, Agrawal, El Abbadi, [Efficient Computation of Frequent and Top-k Elements in Data
//! Streams](https://www.cs.ucsb.edu/sites/default/files/documents/2005-23.pdf) (ICDT 2005).

use std::{borrow::Borrow, collections::HashSet, fmt::Display};

use crate::sync::{Mutex, lock};

/// Counters. The error of a count is at most a 128th of all counted requests.
const COUNTERS: usize = 128;
/// One request in this number is counted, so that a hit stays cheap.
const SAMPLE: u64 = 64;

/// A sketch of what is requested most: bounded, whatever is requested.
#[derive(Debug)]
pub(super) struct HotKeys<K>(Mutex<Vec<(K, u64)>>);

impl<K: Clone + Eq> HotKeys<K> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::with_capacity(COUNTERS)))
    }

    /// Counts a request, or not.
    #[inline]
    pub(super) fn sample<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + ToOwned<Owned = K>,
    {
        if fastrand::u64(..).is_multiple_of(SAMPLE) {
            self.count(key);
        }
    }

    #[cold]
    fn count<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + ToOwned<Owned = K>,
    {
        let mut counters = lock(&self.0);
        if let Some((_, count)) = counters.iter_mut().find(|(it, _)| it.borrow() == key) {
            *count += 1;
        } else if counters.len() < COUNTERS {
            counters.push((key.to_owned(), 1));
        } else if let Some(least) = counters.iter_mut().min_by_key(|(_, count)| *count) {
            // Into the memory of the one that it replaces: hits of many keys would otherwise allocate.
            key.clone_into(&mut least.0);
            least.1 += 1;
        }
    }

    /// The keys that are requested most, with estimates, most first.
    pub(super) fn top(&self, most: usize) -> Vec<(K, u64)> {
        let mut top = lock(&self.0).clone();
        top.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        top.truncate(most);
        top.into_iter()
            .map(|(key, count)| (key, count * SAMPLE))
            .collect()
    }
}

/// The keys that are labels of a metric. Their number in the life of a handle is bounded: each is a series for as long as the
/// metrics are kept.
#[derive(Debug)]
pub(super) struct Labels {
    most: usize,
    given: Mutex<HashSet<String>>,
}

/// What all keys are called that came too late for a label of their own.
const OTHER: &str = "other";
/// Labels in the life of a handle, for each of one export.
const LATER: usize = 8;
/// Length of a label, in characters.
const LONGEST: usize = 64;

impl Labels {
    /// Labels for `most` keys at a time.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            given: Mutex::default(),
        }
    }

    /// Passes the keys of `hot` that are requested most to `out`, by their labels.
    pub(super) fn read<K: Clone + Eq + Display>(
        &self,
        hot: &HotKeys<K>,
        mut out: impl FnMut(&str, u64),
    ) {
        if self.most == 0 {
            return;
        }
        let mut given = lock(&self.given);
        for (key, requests) in hot.top(self.most) {
            let label: String = key.to_string().chars().take(LONGEST).collect();
            let is_named = given.contains(&label)
                || given.len() < self.most * LATER && given.insert(label.clone());
            out(if is_named { &label } else { OTHER }, requests);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_requested_most_is_found_among_many() {
        let hot = HotKeys::new();
        for round in 0..10_000_u32 {
            hot.count(&(round % 3));
            hot.count(&(1_000 + round));
        }
        let top = hot.top(3);
        let mut keys: Vec<u32> = top.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        assert_eq!(keys, [0, 1, 2]);
        // 20,000 in all; the error is at most a 128th.
        for (_, requests) in top {
            let counted = requests / SAMPLE;
            assert!(
                (3_333..=3_334 + 20_000 / 128).contains(&counted),
                "{counted}"
            );
        }
    }

    #[test]
    fn however_many_keys_are_hot_one_after_the_other_few_become_labels() {
        let labels = Labels::new(2);
        let mut names = HashSet::new();
        for round in 0..1_000 {
            let hot = HotKeys::new();
            for key in ["at most one in a round", "x".repeat(1_000).as_str()] {
                hot.count(&format!("{round} {key}"));
            }
            let mut exported = 0;
            labels.read(&hot, |label, _| {
                assert!(label.chars().count() <= LONGEST);
                names.insert(label.to_owned());
                exported += 1;
            });
            assert_eq!(exported, 2);
        }
        assert_eq!(names.len(), 2 * LATER + 1);
        assert!(names.contains(OTHER));
    }

    #[test]
    fn no_key_becomes_a_label_unless_that_is_asked_for() {
        let hot = HotKeys::new();
        hot.count(&1);
        Labels::new(0).read(&hot, |label, _| panic!("{label}"));
    }
}
