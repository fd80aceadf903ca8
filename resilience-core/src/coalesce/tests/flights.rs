use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready_eq, task};

use super::super::*;
use crate::{
    clock::Clock,
    deadline::{self, Deadline},
};

type Numbers = Flights<&'static str, u32>;

fn options() -> FlightOptions {
    FlightOptions {
        max_age: None,
        max_waiters: usize::MAX,
        min_time: None,
        clock: Clock::tokio(),
    }
}

fn flights() -> Numbers {
    Flights::new(options())
}

/// Work that ends when it is told its result.
fn work() -> (
    oneshot::Sender<u32>,
    impl FnOnce() -> futures_util::future::BoxFuture<'static, u32>,
) {
    let (tell, told) = oneshot::channel();
    let start = move || -> futures_util::future::BoxFuture<'static, u32> {
        Box::pin(async move { told.await.unwrap() })
    };
    (tell, start)
}

fn no_start() -> futures_util::future::BoxFuture<'static, u32> {
    panic!("another flight is started")
}

#[test]
fn callers_of_one_key_share_one_piece_of_work_and_each_is_woken_once() {
    let flights = flights();
    let (tell, start) = work();
    let mut leader = task::spawn(flights.join("a", start));
    assert_pending!(leader.poll());
    let mut followers: Vec<_> = (0..100)
        .map(|_| task::spawn(flights.join("a", no_start)))
        .collect();
    for follower in &mut followers {
        assert_pending!(follower.poll());
    }
    assert!(leader.is_leader() && !followers[0].is_leader());
    assert_eq!((leader.waiters(), flights.len()), (101, 1));

    tell.send(7).unwrap();
    assert!(followers.iter().all(|follower| !follower.is_woken()));
    assert!(leader.is_woken(), "the driver alone is woken by the work");
    assert_ready_eq!(leader.poll(), Ok(7));
    assert_eq!(flights.len(), 0);
    for mut follower in followers {
        assert!(follower.is_woken());
        assert_ready_eq!(follower.poll(), Ok(7));
        assert!(!follower.is_owner());
    }
    assert!(leader.is_owner());
}

#[test]
fn keys_do_not_wait_for_each_other() {
    let flights = flights();
    let (_tell, start) = work();
    let mut hanging = task::spawn(flights.join("a", start));
    assert_pending!(hanging.poll());
    let mut other = task::spawn(flights.join("b", || async { 2 }));
    assert_ready_eq!(other.poll(), Ok(2));
    drop(hanging);
    assert_eq!(flights.len(), 0);
}

#[test]
fn when_the_driver_leaves_another_goes_on_with_the_same_work() {
    let flights = flights();
    let (tell, start) = work();
    let mut leader = task::spawn(flights.join("a", start));
    let mut first = task::spawn(flights.join("a", no_start));
    let mut second = task::spawn(flights.join("a", no_start));
    assert_pending!(leader.poll());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(leader);
    assert!(!first.is_woken(), "there is nothing to poll for yet");

    tell.send(7).unwrap();
    assert!(first.is_woken() && !second.is_woken());
    assert_ready_eq!(first.poll(), Ok(7));
    assert_ready_eq!(second.poll(), Ok(7));
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_driver_that_leaves_after_it_was_woken_passes_the_wake_on() {
    let flights = flights();
    let (tell, start) = work();
    let mut leader = task::spawn(flights.join("a", start));
    let mut follower = task::spawn(flights.join("a", no_start));
    assert_pending!(leader.poll());
    assert_pending!(follower.poll());
    tell.send(7).unwrap();
    assert!(!follower.is_woken());
    drop(leader);
    assert!(follower.is_woken());
    assert_ready_eq!(follower.poll(), Ok(7));
}

#[test]
fn a_leader_that_was_never_polled_leaves_its_work_to_the_others() {
    let flights = flights();
    let leader = flights.join("a", || async { 7 });
    let mut follower = task::spawn(flights.join("a", no_start));
    drop(leader);
    assert_ready_eq!(follower.poll(), Ok(7));
    assert!(!follower.is_leader() && follower.is_owner());
}

#[test]
fn a_driver_that_is_not_polled_holds_up_others_until_one_of_them_is_polled() {
    let flights = flights();
    let (tell, start) = work();
    let mut idle = task::spawn(flights.join("a", start));
    assert_pending!(idle.poll());
    tell.send(7).unwrap();
    let mut newcomer = task::spawn(flights.join("a", no_start));
    assert_ready_eq!(newcomer.poll(), Ok(7));
    assert_ready_eq!(idle.poll(), Ok(7));
}

#[test]
fn work_that_nobody_waits_for_is_dropped_at_once() {
    let flights = flights();
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let mut leader = task::spawn(flights.join("a", move || async move {
        let _held = held;
        pending().await
    }));
    let mut follower = task::spawn(flights.join("a", no_start));
    assert_pending!(leader.poll());
    assert_pending!(follower.poll());
    drop(leader);
    assert_eq!(Arc::strong_count(&alive), 2);
    drop(follower);
    assert_eq!((Arc::strong_count(&alive), flights.len()), (1, 0));
}

#[test]
fn work_that_holds_its_own_waker_is_dropped_too() {
    let flights = flights();
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let waker = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&waker);
    let mut leader = task::spawn(flights.join("a", move || {
        std::future::poll_fn(move |cx| {
            let _held = &held;
            *keep.lock().unwrap() = Some(cx.waker().clone());
            std::task::Poll::Pending
        })
    }));
    assert_pending!(leader.poll());
    drop(leader);
    assert_eq!(Arc::strong_count(&alive), 1);
    // A wake that comes late finds nothing to do.
    waker.lock().unwrap().take().unwrap().wake();
}

#[test]
fn a_panic_of_the_work_goes_on_in_its_driver_and_ends_the_wait_of_all_others() {
    let flights = flights();
    let (tell, start) = work();
    let mut leader = task::spawn(flights.join("a", || async {
        start().await;
        panic!("of the work")
    }));
    let mut follower = task::spawn(flights.join("a", no_start));
    let mut gone = task::spawn(flights.join("a", no_start));
    assert_pending!(leader.poll());
    assert_pending!(follower.poll());
    assert_pending!(gone.poll());
    tell.send(7).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| leader.poll())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"of the work"));
    drop(leader);
    assert!(follower.is_woken());
    assert_ready_eq!(follower.poll(), Err(FlightPanicked));
    drop(gone);
    assert_eq!(flights.len(), 0);
    let mut next = task::spawn(flights.join("a", || async { 8 }));
    assert_ready_eq!(next.poll(), Ok(8));
}

#[test]
fn a_panic_while_the_work_is_started_leaves_no_flight_behind() {
    let flights = flights();
    let started = catch_unwind(AssertUnwindSafe(|| flights.join("a", no_start)));
    assert!(started.is_err());
    assert_eq!(flights.len(), 0);
}

#[test]
fn an_old_flight_that_ends_late_does_not_remove_a_newer_one() {
    let flights = flights();
    let ((tell, start), (tell_newer, start_newer)) = (work(), work());
    let mut old = task::spawn(flights.join("a", start));
    assert_pending!(old.poll());
    flights.forget(&"a");
    let mut newer = task::spawn(flights.join("a", start_newer));
    assert_pending!(newer.poll());
    tell.send(1).unwrap();
    assert_ready_eq!(old.poll(), Ok(1));
    assert_eq!(flights.len(), 1);
    let mut joins_newer = task::spawn(flights.join("a", no_start));
    tell_newer.send(2).unwrap();
    assert_ready_eq!(newer.poll(), Ok(2));
    assert_ready_eq!(joins_newer.poll(), Ok(2));
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_fresh_caller_joins_nothing_that_began_before_and_is_joined_by_later_ones() {
    let flights = flights();
    let ((tell, start), (tell_fresh, start_fresh)) = (work(), work());
    let mut before = task::spawn(flights.join("a", start));
    assert_pending!(before.poll());
    let mut fresh = task::spawn(flights.join_fresh("a", start_fresh));
    assert_pending!(fresh.poll());
    let mut after = task::spawn(flights.join("a", no_start));
    assert_pending!(after.poll());
    tell_fresh.send(2).unwrap();
    assert_ready_eq!(fresh.poll(), Ok(2));
    assert_ready_eq!(after.poll(), Ok(2));
    tell.send(1).unwrap();
    assert_ready_eq!(before.poll(), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_flight_of_age_is_not_joined_but_followed_by_another() {
    let max_age = Some(Duration::from_secs(1));
    let flights = Numbers::new(FlightOptions {
        max_age,
        ..options()
    });
    let ((tell, start), (tell_second, start_second)) = (work(), work());
    let mut slow = task::spawn(flights.join("a", start));
    tokio::time::advance(Duration::from_millis(999)).await;
    let mut in_time = task::spawn(flights.join("a", no_start));
    tokio::time::advance(Duration::from_millis(1)).await;
    let mut late = task::spawn(flights.join("a", start_second));
    for waiter in [&mut slow, &mut in_time, &mut late] {
        assert_pending!(waiter.poll());
    }
    assert!(late.is_leader());
    tell_second.send(2).unwrap();
    assert_ready_eq!(late.poll(), Ok(2));
    tell.send(1).unwrap();
    assert_ready_eq!(slow.poll(), Ok(1));
    assert_ready_eq!(in_time.poll(), Ok(1));
    assert_eq!(flights.len(), 0);
}

#[test]
fn callers_beyond_the_most_waiters_share_another_flight() {
    let flights = Numbers::new(FlightOptions {
        max_waiters: 2,
        ..options()
    });
    let ((tell, start), (tell_second, start_second)) = (work(), work());
    let mut leader = task::spawn(flights.join("a", start));
    let mut follower = task::spawn(flights.join("a", no_start));
    let mut beyond = task::spawn(flights.join("a", start_second));
    let mut joins = task::spawn(flights.join("a", no_start));
    for waiter in [&mut leader, &mut follower, &mut beyond, &mut joins] {
        assert_pending!(waiter.poll());
    }
    assert_eq!((leader.waiters(), beyond.waiters()), (2, 2));
    tell_second.send(2).unwrap();
    assert_ready_eq!(beyond.poll(), Ok(2));
    assert_ready_eq!(joins.poll(), Ok(2));
    tell.send(1).unwrap();
    assert_ready_eq!(leader.poll(), Ok(1));
    assert_ready_eq!(follower.poll(), Ok(1));
    assert_eq!(flights.len(), 0);
}

/// Work that notes the deadline of each of its polls.
fn noting(seen: &Arc<Mutex<Vec<Option<Duration>>>>) -> impl Future<Output = u32> + use<> {
    let seen = Arc::clone(seen);
    std::future::poll_fn(move |cx| {
        let left = deadline::current().map(Deadline::remaining);
        seen.lock().unwrap().push(left);
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
}

#[tokio::test(start_paused = true)]
async fn the_work_runs_under_the_latest_deadline_of_its_callers() {
    let flights = flights();
    let seen = Arc::default();
    let after = |millis| Deadline::after(Duration::from_millis(millis));
    let join = || flights.join("a", || noting(&seen));
    let mut short = task::spawn(deadline::sync_scope(after(10), join));
    assert_pending!(short.poll());
    let _long = deadline::sync_scope(after(100), join);
    let _middle = deadline::sync_scope(after(50), join);
    assert_pending!(short.poll());
    let _without = join();
    // The driver's own deadline does not count.
    assert_pending!(deadline::sync_scope(after(5), || short.poll()));
    let left = [Some(10), Some(100), None].map(|millis| millis.map(Duration::from_millis));
    assert_eq!(*seen.lock().unwrap(), left);
}

#[tokio::test(start_paused = true)]
async fn work_has_a_minimum_of_time_however_little_its_first_caller_has() {
    let min_time = Some(Duration::from_secs(1));
    let flights = Numbers::new(FlightOptions {
        min_time,
        ..options()
    });
    let seen = Arc::default();
    let soon = Deadline::after(Duration::from_millis(10));
    let mut short = task::spawn(deadline::sync_scope(soon, || {
        flights.join("a", || noting(&seen))
    }));
    assert_pending!(short.poll());
    assert_eq!(*seen.lock().unwrap(), [min_time]);
}

/// Work of twenty steps, which counts how much of it runs at once.
async fn twenty_steps(running: Arc<AtomicUsize>, result: u32) -> u32 {
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    assert_eq!(running.fetch_add(1, SeqCst), 0, "twice at once");
    let _running = Running(running);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    result
}

#[test]
fn whenever_its_driver_leaves_the_work_is_started_once() {
    for polls in 0..20 {
        let flights = flights();
        let running = Arc::new(AtomicUsize::new(0));
        let mut leader = task::spawn(flights.join("a", || twenty_steps(running, 7)));
        let mut follower = task::spawn(flights.join("a", no_start));
        assert_pending!(follower.poll());
        for _ in 0..polls {
            assert_pending!(leader.poll());
        }
        drop(leader);
        let mut more = 0;
        while follower.poll().is_pending() {
            more += 1;
        }
        // The follower's first poll drove too: the leader had not come yet.
        assert_eq!((1 + polls + more, flights.len()), (20, 0));
    }
}

async fn crowd(impatient: bool) {
    let flights = Flights::<u32, u32>::new(options());
    let running: [Arc<AtomicUsize>; 4] = Default::default();
    let mut callers = Vec::new();
    for caller in 0..2_000_u32 {
        let key = caller % 4;
        let flights = flights.clone();
        let mut running = Arc::clone(&running[key as usize]);
        callers.push(tokio::spawn(async move {
            let leaves = impatient && caller % 3 == 0;
            if impatient {
                // What is abandoned may still be on its way out when the next caller begins.
                running = Arc::default();
            }
            let call = flights.join(key, || twenty_steps(running, key));
            tokio::select! {
                biased;
                result = call => assert_eq!(result, Ok(key)),
                () = tokio::task::yield_now(), if leaves => {}
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(flights.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_pieces_of_work_of_a_key_run_at_once() {
    crowd(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_that_stays_is_answered_whoever_leaves() {
    crowd(true).await;
}
