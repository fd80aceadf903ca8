//! Every interleaving of a few callers of one key, by loom.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use loom::{future::block_on, thread};

use super::*;
use crate::{
    clock::Clock,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

type Numbers = Flights<u32, u32>;

const KEY: u32 = 1;

/// A test in the middle of which the work waits for another thread.
#[derive(Clone)]
struct World {
    flights: Numbers,
    /// The waker of the work, and whether the work may end.
    gate: Arc<Mutex<(Option<std::task::Waker>, bool)>>,
    started: Arc<AtomicUsize>,
}

impl World {
    fn new() -> Self {
        Self {
            flights: Flights::new(FlightOptions {
                max_age: None,
                max_waiters: usize::MAX,
                min_time: None,
                clock: Clock::tokio(),
            }),
            gate: Arc::new(Mutex::new((None, false))),
            started: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn open(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.1 = true;
        let waker = gate.0.take();
        drop(gate);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Joins with work that ends once the gate is open.
    fn join(&self) -> Joined<u32, u32> {
        let (gate, started) = (Arc::clone(&self.gate), Arc::clone(&self.started));
        self.flights.join(KEY, || {
            started.fetch_add(1, SeqCst);
            poll_fn(move |cx| {
                let mut gate = gate.lock().unwrap();
                if gate.1 {
                    return Poll::Ready(7);
                }
                gate.0 = Some(cx.waker().clone());
                Poll::Pending
            })
        })
    }

    fn assert_empty(&self) {
        assert_eq!(self.flights.len(), 0);
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Polls once, and leaves if that is not enough.
fn poll_and_leave(call: Joined<u32, u32>) {
    let mut call = call;
    block_on(poll_fn(|cx: &mut Context<'_>| {
        let _ = Pin::new(&mut call).poll(cx);
        Poll::Ready(())
    }));
}

#[test]
fn loom_coalesce_two_callers_share_one_piece_of_work_and_both_are_answered() {
    explore(|| {
        let world = World::new();
        let (mine, other) = (world.join(), world.clone());
        let opener = world.clone();
        let joins = thread::spawn(move || block_on(other.join()));
        let opens = thread::spawn(move || opener.open());
        assert_eq!(block_on(mine), Ok(7));
        assert_eq!(joins.join().unwrap(), Ok(7));
        opens.join().unwrap();
        // A second one only when the first was over.
        assert!(world.started.load(SeqCst) <= 2);
        world.assert_empty();
    });
}

#[test]
fn loom_coalesce_a_driver_that_leaves_at_any_moment_leaves_the_work_to_the_other() {
    explore(|| {
        let world = World::new();
        let (leader, follower) = (world.join(), world.join());
        let opener = world.clone();
        let leaves = thread::spawn(move || poll_and_leave(leader));
        let opens = thread::spawn(move || opener.open());
        assert_eq!(block_on(follower), Ok(7));
        leaves.join().unwrap();
        opens.join().unwrap();
        assert_eq!(world.started.load(SeqCst), 1);
        world.assert_empty();
    });
}

#[test]
fn loom_coalesce_a_caller_that_comes_as_the_last_one_leaves_is_answered() {
    explore(|| {
        let world = World::new();
        let leader = world.join();
        let leaves = thread::spawn(move || drop(leader));
        let comer = world.join();
        world.open();
        assert_eq!(block_on(comer), Ok(7));
        leaves.join().unwrap();
        assert!(world.started.load(SeqCst) <= 2);
        world.assert_empty();
    });
}

#[test]
fn loom_coalesce_when_all_leave_nothing_is_left() {
    explore(|| {
        let world = World::new();
        let (leader, follower) = (world.join(), world.join());
        let leaves = thread::spawn(move || poll_and_leave(leader));
        poll_and_leave(follower);
        leaves.join().unwrap();
        world.assert_empty();
        let waker = world.gate.lock().unwrap().0.take();
        assert_eq!(Arc::strong_count(&world.gate), 1, "the work is dropped");
        drop(waker);
    });
}

#[test]
fn loom_coalesce_a_panic_reaches_its_driver_and_ends_the_wait_of_the_other() {
    explore(|| {
        let world = World::new();
        let leader = world.flights.join(KEY, || async { panic!("of the work") });
        let follower = world.join();
        let run = |call| catch_unwind(AssertUnwindSafe(|| block_on(call)));
        let other = thread::spawn(move || run(leader).is_err());
        let mine = run(follower);
        let theirs_panicked = other.join().unwrap();
        assert!(
            theirs_panicked != mine.is_err(),
            "one of them was the driver"
        );
        assert!(theirs_panicked.eq(&matches!(mine, Ok(Err(FlightPanicked)))));
        world.assert_empty();
    });
}

#[test]
fn loom_coalesce_an_old_flight_never_removes_a_newer_one() {
    explore(|| {
        let world = World::new();
        world.open();
        let old = world.join();
        world.flights.forget(&KEY);
        let newer = world.join();
        let ends = thread::spawn(move || block_on(old));
        let joins = world.join();
        assert!(!joins.is_leader());
        assert_eq!(ends.join().unwrap(), Ok(7));
        assert_eq!(world.flights.len(), 1);
        assert_eq!(block_on(newer), Ok(7));
        assert_eq!(block_on(joins), Ok(7));
        world.assert_empty();
    });
}
