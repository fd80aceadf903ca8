//! Names and numbers under which a broker recognizes a repeated publish.

use std::sync::Arc;

use crate::{
    fleet::instance_id,
    sync::{Mutex, lock},
};

/// One name per publish in progress: publishes of one name would have to wait for each other, since a number that arrives late
/// counts as a repetition.
#[derive(Debug, Default)]
pub(crate) struct Sequences(Mutex<Vec<Sequence>>);

/// A name that no publish in progress uses, and the next of its numbers.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) producer: Arc<str>,
    pub(crate) next: u64,
}

/// Names that are kept while there is nothing to publish.
const MOST: usize = 256;

impl Sequences {
    pub(crate) fn take(&self) -> Sequence {
        let taken = lock(&self.0).pop();
        taken.unwrap_or_else(|| Sequence {
            producer: instance_id(None),
            next: 1,
        })
    }

    /// After a publish of `many` messages whose outcome is known.
    pub(crate) fn give_back(&self, mut sequence: Sequence, many: u64) {
        sequence.next += many;
        let mut free = lock(&self.0);
        if free.len() < MOST {
            free.push(sequence);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn publishes_in_progress_never_share_a_name_and_numbers_go_on() {
        let sequences = Sequences::default();
        let (one, other) = (sequences.take(), sequences.take());
        assert_ne!(one.producer, other.producer);
        let name = Arc::clone(&one.producer);
        sequences.give_back(one, 3);
        let again = sequences.take();
        assert_eq!((&again.producer, again.next), (&name, 4));
        // Its outcome is not known: it is not used again.
        drop(other);
        assert_ne!(sequences.take().producer, name);
    }
}
