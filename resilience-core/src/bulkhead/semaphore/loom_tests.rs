//! Every interleaving of a few threads, by loom: `RUSTFLAGS="--cfg loom" cargo test --lib loom_`.

use loom::{sync::Arc, thread};

use super::*;
use crate::sync::atomic::AtomicUsize;

fn leave(semaphore: &Semaphore<()>) {
    if semaphore.leave() {
        while semaphore.hand_over().is_some() {}
    }
}

/// Holds a permit for as long as it takes to see that no other call does.
fn work(semaphore: &Semaphore<()>, inside: &AtomicUsize) {
    assert_eq!(inside.fetch_add(1, Relaxed), 0, "two calls in one place");
    inside.fetch_sub(1, Relaxed);
    leave(semaphore);
}

fn assert_empty(semaphore: &Semaphore<()>) {
    let load = semaphore.load();
    assert_eq!((load.in_flight, load.waiting), (0, 0));
}

#[test]
fn loom_one_place_is_never_taken_twice() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1, 0));
        let inside = Arc::new(AtomicUsize::new(0));
        let (other_gate, other_inside) = (Arc::clone(&semaphore), Arc::clone(&inside));
        let other = thread::spawn(move || {
            if other_gate.enter().is_some() {
                work(&other_gate, &other_inside);
            }
        });
        if semaphore.enter().is_some() {
            work(&semaphore, &inside);
        }
        other.join().unwrap();
        assert_empty(&semaphore);
    });
}

#[test]
fn loom_a_place_given_back_while_somebody_joins_the_queue_is_not_lost() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1, 2));
        semaphore.enter().unwrap();
        let joins: Vec<_> = (0..2)
            .map(|_| {
                let semaphore = Arc::clone(&semaphore);
                thread::spawn(move || match semaphore.enter_or_queue() {
                    Entry::Passed => {
                        leave(&semaphore);
                        None
                    }
                    Entry::Queued(ticket) => Some(ticket),
                    Entry::Full => unreachable!("there is room for both"),
                })
            })
            .collect();
        leave(&semaphore);
        let mut tickets: Vec<_> = joins
            .into_iter()
            .filter_map(|join| join.join().unwrap())
            .collect();
        tickets.sort_unstable();
        for ticket in tickets {
            assert!(
                !semaphore.still_waits(ticket, |_| ()),
                "its turn, and it is not woken"
            );
            leave(&semaphore);
        }
        assert_empty(&semaphore);
    });
}

#[test]
fn loom_a_waiter_that_gives_up_as_its_place_comes_passes_it_on() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1, 2));
        semaphore.enter().unwrap();
        let Entry::Queued(first) = semaphore.enter_or_queue() else {
            unreachable!()
        };
        let Entry::Queued(second) = semaphore.enter_or_queue() else {
            unreachable!()
        };
        let quitter = Arc::clone(&semaphore);
        let quits = thread::spawn(move || {
            if !quitter.cancel(first) {
                leave(&quitter);
            }
        });
        leave(&semaphore);
        quits.join().unwrap();
        assert!(!semaphore.still_waits(second, |_| ()));
        leave(&semaphore);
        assert_empty(&semaphore);
    });
}

#[test]
fn loom_places_added_while_one_is_given_back_all_reach_those_who_wait() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1, 2));
        semaphore.enter().unwrap();
        let Entry::Queued(first) = semaphore.enter_or_queue() else {
            unreachable!()
        };
        let Entry::Queued(second) = semaphore.enter_or_queue() else {
            unreachable!()
        };
        let owner = Arc::clone(&semaphore);
        let resizes = thread::spawn(move || {
            owner.resize(2);
            while owner.hand_over().is_some() {}
        });
        leave(&semaphore);
        resizes.join().unwrap();
        assert!(!semaphore.still_waits(first, |_| ()) && !semaphore.still_waits(second, |_| ()));
        leave(&semaphore);
        leave(&semaphore);
        assert_empty(&semaphore);
    });
}
