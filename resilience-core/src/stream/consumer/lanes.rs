//! Messages that wait in the process, and which may start: a pure data structure.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use crate::stream::message::Position;

/// Messages in the order in which they came; of one key, one starts at a time.
#[derive(Debug)]
pub(super) struct Lanes<M> {
    /// Messages that may start, by when they came.
    ready: BTreeMap<u64, (Position, Option<Arc<str>>, M)>,
    /// The messages behind the one of their key that is ready or running.
    busy: HashMap<Arc<str>, VecDeque<(u64, Position, M)>>,
    came: u64,
    waiting: usize,
}

impl<M> Lanes<M> {
    pub(super) fn new() -> Self {
        Self {
            ready: BTreeMap::new(),
            busy: HashMap::new(),
            came: 0,
            waiting: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.waiting
    }

    /// Adds a message. Without a key it waits for no other one.
    pub(super) fn push(&mut self, position: Position, key: Option<Arc<str>>, message: M) {
        self.came += 1;
        self.waiting += 1;
        if let Some(key) = &key {
            if let Some(behind) = self.busy.get_mut(key) {
                behind.push_back((self.came, position, message));
                return;
            }
            self.busy.insert(Arc::clone(key), VecDeque::new());
        }
        self.ready.insert(self.came, (position, key, message));
    }

    /// The next message that may start. Its key is taken until [`done`](Self::done).
    pub(super) fn pop(&mut self) -> Option<(Position, Option<Arc<str>>, M)> {
        let (_, next) = self.ready.pop_first()?;
        self.waiting -= 1;
        Some(next)
    }

    /// Frees the key of a message that has ended, or was taken out.
    pub(super) fn done(&mut self, key: Option<&Arc<str>>) {
        let Some(key) = key else {
            return;
        };
        let Some(behind) = self.busy.get_mut(key) else {
            return;
        };
        match behind.pop_front() {
            Some((came, position, message)) => {
                let key = Some(Arc::clone(key));
                self.ready.insert(came, (position, key, message));
            }
            None => {
                self.busy.remove(key);
            }
        }
    }

    /// Takes out the messages that `takes` names, in the order in which they came.
    pub(super) fn take(&mut self, mut takes: impl FnMut(Position) -> bool) -> Vec<(Position, M)> {
        let mut taken = Vec::new();
        for behind in self.busy.values_mut() {
            for (came, position, message) in std::mem::take(behind) {
                if takes(position) {
                    taken.push((came, position, message));
                } else {
                    behind.push_back((came, position, message));
                }
            }
        }
        let ready = self.ready.iter();
        let ready = ready.filter(|(_, (position, ..))| takes(*position));
        let ready: Vec<_> = ready.map(|(came, _)| *came).collect();
        for came in ready {
            if let Some((position, key, message)) = self.ready.remove(&came) {
                taken.push((came, position, message));
                self.done(key.as_ref());
            }
        }
        self.waiting -= taken.len();
        taken.sort_unstable_by_key(|(came, ..)| *came);
        let taken = taken.into_iter();
        taken
            .map(|(_, position, message)| (position, message))
            .collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn at(number: u64) -> Position {
        Position::new(number, 0)
    }

    proptest! {
        #[test]
        fn of_one_key_one_runs_at_a_time_in_order_and_none_is_forgotten(
            steps in prop::collection::vec((0..4u8, prop::option::of(0..3u8), any::<u64>()), 1..200),
        ) {
            let mut lanes = Lanes::new();
            let (mut pushed, mut ended, mut taken) = (0, HashSet::new(), HashSet::new());
            let mut running: Vec<(Position, Option<Arc<str>>)> = Vec::new();
            let mut last = HashMap::new();
            for (what, key, pick) in steps {
                match what {
                    0 | 1 => {
                        pushed += 1;
                        let key = key.map(|it| it.to_string().into());
                        lanes.push(at(pushed), key, pushed);
                    }
                    2 => {
                        if let Some((position, key, number)) = lanes.pop() {
                            prop_assert_eq!(position, at(number));
                            if let Some(key) = &key {
                                prop_assert!(running.iter().all(|(_, it)| it.as_ref() != Some(key)));
                                let before = last.insert(Arc::clone(key), number);
                                prop_assert!(before < Some(number), "in order");
                            }
                            running.push((position, key));
                        }
                    }
                    _ if pick % 5 == 0 => {
                        let goes = |position: Position| position.ms % 3 == pick % 3;
                        for (position, number) in lanes.take(goes) {
                            prop_assert!(goes(position) && position == at(number));
                            prop_assert!(taken.insert(number));
                        }
                    }
                    _ if !running.is_empty() => {
                        let which = (pick % running.len() as u64) as usize;
                        let (position, key) = running.swap_remove(which);
                        ended.insert(position.ms);
                        lanes.done(key.as_ref());
                    }
                    _ => {}
                }
                let known = lanes.len() + running.len() + ended.len() + taken.len();
                prop_assert_eq!(known as u64, pushed);
            }
            // Everything comes to an end.
            loop {
                for (_, key) in running.drain(..) {
                    lanes.done(key.as_ref());
                }
                match lanes.pop() {
                    Some((position, key, _)) => running.push((position, key)),
                    None => break,
                }
            }
            prop_assert_eq!(lanes.len(), 0);
            prop_assert!(lanes.busy.is_empty());
        }
    }

    #[test]
    fn a_busy_key_does_not_keep_others_waiting() {
        let mut lanes = Lanes::new();
        for (number, key) in [(1, Some("a")), (2, Some("a")), (3, None), (4, Some("b"))] {
            lanes.push(at(number), key.map(Arc::from), ());
        }
        let mut started = Vec::new();
        while let Some((position, ..)) = lanes.pop() {
            started.push(position.ms);
        }
        assert_eq!((started, lanes.len()), (vec![1, 3, 4], 1));
    }
}
