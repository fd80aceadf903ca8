//! Whether what this process holds is still what the store holds.
//!
//! Every value in the process carries a [`Ticket`], drawn before the value was asked for. A change raises the generation
//! of its slot, so a ticket drawn earlier is void, no matter when the value arrives: nothing has to be removed, compared
//! under a lock, or in order with anything. Two keys of one slot are read again together: that costs a read, not truth.
//!
//! While the store reports no changes, the epoch is odd. Values of an earlier epoch, and those of an odd one, are
//! [doubtful](Validity::Doubtful): they serve within `max_stale` only.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{Notify, futures::OwnedNotified};

use super::store::Observer;
use crate::{
    clock::{Clock, Moment},
    sync::{
        Mutex,
        atomic::{
            AtomicU32, AtomicUsize,
            Ordering::{AcqRel, Acquire, Release},
        },
        lock,
    },
};

/// What a value has to show when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    epoch: u32,
    slot: u32,
    generation: u32,
}

impl Ticket {
    /// Whether the store reported changes when it was drawn.
    pub(super) const fn is_told(self) -> bool {
        is_told(self.epoch)
    }

    /// Tells reads of one key before and after a change apart.
    pub(super) const fn mark(self) -> u64 {
        (self.epoch as u64) << 32 | self.generation as u64
    }
}

/// What a ticket is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// No change since.
    Valid,
    /// No change is known of, since this moment. `None`: since the value was stored.
    Doubtful(Option<Moment>),
    /// Changed since.
    Void,
}

/// The generations of all keys and tags of one cache.
pub(super) struct Coherence {
    epoch: AtomicU32,
    slots: Box<[AtomicU32]>,
    clock: Clock,
    /// The number of the tag that all values have.
    all: Option<u64>,
    history: Mutex<History>,
    /// Notified when the store reports changes again after it did not.
    again: Arc<Notify>,
    waiting: AtomicUsize,
    waiters: Mutex<HashMap<u64, Arc<Notify>>>,
}

#[derive(Debug, Default)]
struct History {
    /// The last epoch that was lost, and when.
    lost: Option<(u32, Moment)>,
    /// The first epoch after everything had changed.
    cleared: u32,
    /// Whether changes were reported and then were not.
    was_lost: bool,
}

impl Coherence {
    /// For about `entries` values. `all`: the number of the tag that all values have, in a store; `None`: there is no store,
    /// and every change is known.
    pub(super) fn new(entries: usize, all: Option<u64>, clock: Clock) -> Self {
        let slots = (entries.saturating_mul(4)).next_power_of_two();
        let slots = slots.clamp(FEWEST, MOST);
        Self {
            epoch: AtomicU32::new(u32::from(all.is_some())),
            slots: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            clock,
            all,
            history: Mutex::new(History::default()),
            again: Arc::default(),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::new(HashMap::new()),
        }
    }

    /// Draws a ticket for what is about to be read.
    pub(super) fn ticket(&self, id: u64) -> Ticket {
        let slot = self.slot(id);
        // The epoch first: lost in between, the ticket is of the old one.
        let epoch = self.epoch.load(Acquire);
        let generation = self.slots[slot as usize].load(Acquire);
        Ticket {
            epoch,
            slot,
            generation,
        }
    }

    #[inline]
    pub(super) fn check(&self, ticket: &Ticket) -> Validity {
        if self.slots[ticket.slot as usize].load(Acquire) != ticket.generation {
            return Validity::Void;
        }
        let epoch = self.epoch.load(Acquire);
        if epoch == ticket.epoch && is_told(epoch) {
            return Validity::Valid;
        }
        self.check_epoch(ticket.epoch)
    }

    #[cold]
    fn check_epoch(&self, epoch: u32) -> Validity {
        let history = lock(&self.history);
        // Counted from the last clearing: epochs wrap around.
        let now = self.epoch.load(Acquire).wrapping_sub(history.cleared);
        if epoch.wrapping_sub(history.cleared) > now {
            return Validity::Void;
        }
        match history.lost {
            _ if !is_told(epoch) => Validity::Doubtful(None),
            Some((lost, at)) if lost == epoch => Validity::Doubtful(Some(at)),
            _ => Validity::Void,
        }
    }

    /// Notified when the store reports changes again after it did not.
    pub(super) fn again(&self) -> Arc<Notify> {
        Arc::clone(&self.again)
    }

    /// Whether the store reports changes.
    pub(super) fn is_told(&self) -> bool {
        is_told(self.epoch.load(Acquire))
    }

    /// The next change of `id`, from the time this is called.
    pub(super) fn change_of(&self, id: u64) -> Change<'_> {
        let mut waiters = lock(&self.waiters);
        let notify = Arc::clone(waiters.entry(id).or_default());
        self.waiting.fetch_add(1, AcqRel);
        let notified = Arc::clone(&notify).notified_owned();
        Change {
            _registered: Registered {
                coherence: self,
                id,
                notify,
            },
            notified,
        }
    }

    fn slot(&self, id: u64) -> u32 {
        // Spread, whatever the numbers are.
        let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as u32 & (self.slots.len() as u32 - 1)
    }

    fn wake(&self, id: Option<u64>) {
        if self.waiting.load(Acquire) == 0 {
            return;
        }
        let waiters = lock(&self.waiters);
        match id {
            Some(id) => waiters
                .get(&id)
                .into_iter()
                .for_each(|it| it.notify_waiters()),
            None => waiters.values().for_each(|it| it.notify_waiters()),
        }
    }
}

impl Observer for Coherence {
    fn changed(&self, id: u64) {
        if self.all == Some(id) {
            self.cleared();
        }
        self.slots[self.slot(id) as usize].fetch_add(1, AcqRel);
        self.wake(Some(id));
    }

    fn cleared(&self) {
        let mut history = lock(&self.history);
        // By two: whether changes are reported stays as it is.
        history.cleared = self.epoch.fetch_add(2, AcqRel).wrapping_add(2);
        history.lost = None;
        drop(history);
        self.wake(None);
    }

    fn lost(&self) {
        let mut history = lock(&self.history);
        let epoch = self.epoch.load(Acquire);
        if is_told(epoch) {
            history.lost = Some((epoch, self.clock.now()));
            history.was_lost = true;
            self.epoch.store(epoch.wrapping_add(1), Release);
        }
        drop(history);
        self.wake(None);
    }

    fn restored(&self) {
        let mut history = lock(&self.history);
        let epoch = self.epoch.load(Acquire);
        if is_told(epoch) {
            history.lost = Some((epoch, self.clock.now()));
            history.was_lost = true;
        }
        let next = epoch.wrapping_add(if is_told(epoch) { 2 } else { 1 });
        self.epoch.store(next, Release);
        if std::mem::take(&mut history.was_lost) {
            self.again.notify_one();
        }
    }
}

const fn is_told(epoch: u32) -> bool {
    epoch.is_multiple_of(2)
}

/// A change that is waited for.
pub(super) struct Change<'a> {
    notified: OwnedNotified,
    _registered: Registered<'a>,
}

impl Change<'_> {
    /// Waits for it. May return without one.
    pub(super) async fn happened(self) {
        self.notified.await;
    }
}

struct Registered<'a> {
    coherence: &'a Coherence,
    id: u64,
    notify: Arc<Notify>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.coherence.waiters);
        self.coherence.waiting.fetch_sub(1, AcqRel);
        // This one and the map's.
        if Arc::strong_count(&self.notify) == 2 {
            waiters.remove(&self.id);
        }
    }
}

/// 4 bytes each. One for loom, which keeps books about each.
const FEWEST: usize = if cfg!(all(loom, test)) { 1 } else { 1 << 10 };
const MOST: usize = 1 << 20;

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told() -> Coherence {
        let it = Coherence::new(100, Some(u64::MAX), Clock::tokio());
        it.restored();
        it
    }

    #[test]
    fn a_ticket_is_void_after_a_change_however_late_its_value_comes() {
        let it = told();
        let (one, other) = (it.ticket(1), it.ticket(2));
        it.changed(1);
        assert_eq!(it.check(&one), Validity::Void);
        assert_eq!(it.check(&other), Validity::Valid);
        assert_eq!(it.check(&it.ticket(1)), Validity::Valid);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_when_the_store_was_lost_is_doubtful_since_then_and_after_a_clearing_void()
     {
        let it = told();
        let held = it.ticket(1);
        tokio::time::advance(Duration::from_secs(1)).await;
        let lost = it.clock.now();
        it.lost();
        tokio::time::advance(Duration::from_secs(1)).await;
        it.lost();
        assert_eq!(it.check(&held), Validity::Doubtful(Some(lost)));
        let meanwhile = it.ticket(1);
        assert_eq!(it.check(&meanwhile), Validity::Doubtful(None));
        it.restored();
        assert_eq!(it.check(&held), Validity::Doubtful(Some(lost)));
        assert_eq!(it.check(&meanwhile), Validity::Doubtful(None));
        let now = it.ticket(1);
        assert_eq!(it.check(&now), Validity::Valid);
        it.changed(u64::MAX);
        for ticket in [held, meanwhile, now] {
            assert_eq!(it.check(&ticket), Validity::Void);
        }
        assert_eq!(it.check(&it.ticket(1)), Validity::Valid);
    }

    #[test]
    fn a_new_connection_without_a_loss_is_a_new_epoch_and_two_losses_are_too_many() {
        let it = told();
        let first = it.ticket(1);
        it.restored();
        assert!(matches!(it.check(&first), Validity::Doubtful(Some(_))));
        it.restored();
        assert_eq!(it.check(&first), Validity::Void);
    }

    #[test]
    fn without_a_store_every_change_is_known() {
        let it = Coherence::new(1, None, Clock::tokio());
        assert!(it.is_told());
        assert_eq!(it.check(&it.ticket(1)), Validity::Valid);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_and_nothing_is_left() {
        let it = told();
        let (one, other) = (it.change_of(1), it.change_of(1));
        let mut woken = tokio_test::task::spawn(one.happened());
        tokio_test::assert_pending!(woken.poll());
        it.changed(2);
        assert!(!woken.is_woken());
        it.changed(1);
        tokio_test::assert_ready!(woken.poll());
        drop(woken);
        // Not polled before: it has happened all the same.
        other.happened().await;
        assert!(lock(&it.waiters).is_empty());
        assert_eq!(it.waiting.load(Acquire), 0);
    }
}
