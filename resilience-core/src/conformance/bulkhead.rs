//! One suite for every store of shared bulkheads: what the record of a bulkhead must do, asked through the trait.
//!
//! Each check takes a fresh name, so that all can run on one server. Times are real: leases are so long that they do not
//! end while a check runs, or so short that their end is waited for with a bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::bulkhead::fleet::{
    AcquireRequest, Admission, BulkheadStore, BulkheadView, Heartbeat, Holding, Release, Wakeups,
};

use crate::conformance::eventually;

const SOON: Duration = Duration::from_secs(10);
const LONG: u64 = 3_600_000;
const BRIEF: u64 = 60;

/// Runs every check on a store.
pub async fn all(shared: &Arc<dyn BulkheadStore>) {
    let store = &**shared;
    an_unknown_bulkhead_is_empty(store).await;
    places_are_taken_and_given_back(store).await;
    what_a_wish_brings_back_makes_room_for_it(store).await;
    a_repeated_wish_takes_nothing_more(store).await;
    what_can_never_be_had_is_impossible(store).await;
    a_lease_ends_on_the_stores_clock_and_its_place_is_reclaimed(store).await;
    a_renewed_lease_goes_on(store).await;
    a_lost_lease_is_told_so_and_releases_nothing(store).await;
    only_the_holder_releases(store).await;
    fences_only_go_up(store).await;
    a_lease_older_than_the_record_is_entered_anew(store).await;
    who_waits_is_called_up_in_order_of_arrival(store).await;
    a_newcomer_does_not_overtake(store).await;
    who_leaves_the_queue_makes_room(store).await;
    a_dead_waiter_blocks_for_no_longer_than_its_position_lasts(store).await;
    an_instance_is_live_for_as_long_as_it_said(store).await;
    names_do_not_leak_into_each_other(store).await;
    each_wish_goes_by_the_limit_that_it_knows(store).await;
    a_crowd_never_holds_more_than_there_is(shared).await;
}

fn request(lease: &str, cost: u64, limit: u64) -> AcquireRequest {
    AcquireRequest {
        lease: lease.into(),
        cost,
        limit,
        lease_ms: LONG,
        ticket_ms: 0,
        releases: Vec::new(),
    }
}

async fn ask(store: &dyn BulkheadStore, name: &str, request: &AcquireRequest) -> Admission {
    store.acquire(name, request).await.expect("an answer")
}

async fn granted(store: &dyn BulkheadStore, name: &str, request: &AcquireRequest) -> u64 {
    match ask(store, name, request).await {
        Admission::Granted { fence } => fence,
        other => panic!("{name}: {request:?}: {other:?}"),
    }
}

async fn is_full(store: &dyn BulkheadStore, name: &str, request: &AcquireRequest) -> bool {
    matches!(ask(store, name, request).await, Admission::Full { .. })
}

async fn release(store: &dyn BulkheadStore, name: &str, lease: &str, fence: Option<u64>) -> bool {
    let releases = [Release {
        lease: lease.into(),
        fence,
    }];
    let released = store.release(name, &releases).await.expect("an answer");
    assert_eq!(released.len(), 1);
    released[0]
}

async fn view(store: &dyn BulkheadStore, name: &str) -> BulkheadView {
    store.view(name).await.expect("a view")
}

fn beat(lease_ms: u64, holdings: &[(&str, u64, u64)]) -> Heartbeat {
    let holding = |&(lease, cost, fence): &(&str, u64, u64)| Holding {
        lease: lease.into(),
        cost,
        fence,
    };
    Heartbeat {
        instance: "instance".into(),
        live_ms: LONG,
        lease_ms,
        holdings: holdings.iter().map(holding).collect(),
    }
}

async fn an_unknown_bulkhead_is_empty(store: &dyn BulkheadStore) {
    assert_eq!(view(store, "unknown").await, BulkheadView::default());
    assert!(!release(store, "unknown", "nobody", None).await);
    assert_eq!(view(store, "unknown").await, BulkheadView::default());
}

async fn places_are_taken_and_given_back(store: &dyn BulkheadStore) {
    let name = "taken";
    let a = granted(store, name, &request("a", 2, 5)).await;
    let b = granted(store, name, &request("b", 3, 5)).await;
    let full = view(store, name).await;
    assert_eq!((full.in_flight, full.leases, full.fence), (5, 2, b));
    let Admission::Full { again_ms } = ask(store, name, &request("c", 1, 5)).await else {
        panic!("there is no place");
    };
    assert!((LONG - 60_000..=LONG).contains(&again_ms), "{again_ms}");
    assert!(is_full(store, name, &request("c", 1, 4)).await);
    assert!(release(store, name, "a", Some(a)).await);
    assert_eq!(view(store, name).await.in_flight, 3);
    granted(store, name, &request("c", 2, 5)).await;
    let releases = ["b", "c"].map(|lease| Release {
        lease: lease.into(),
        fence: None,
    });
    let released = store.release(name, &releases).await.expect("an answer");
    assert_eq!(released, [true, true], "many in one step");
    let empty = view(store, name).await;
    assert_eq!((empty.in_flight, empty.leases), (0, 0));
}

async fn what_a_wish_brings_back_makes_room_for_it(store: &dyn BulkheadStore) {
    let name = "brought";
    let fence = granted(store, name, &request("a", 2, 3)).await;
    let bringing = |lease: &str, fence| AcquireRequest {
        releases: vec![Release {
            lease: lease.into(),
            fence: Some(fence),
        }],
        ..request("b", 3, 3)
    };
    assert!(is_full(store, name, &bringing("other", fence)).await);
    assert!(is_full(store, name, &bringing("a", fence + 1)).await);
    granted(store, name, &bringing("a", fence)).await;
    let seen = view(store, name).await;
    assert_eq!((seen.in_flight, seen.leases), (3, 1));
}

async fn a_repeated_wish_takes_nothing_more(store: &dyn BulkheadStore) {
    let name = "repeated";
    let first = granted(store, name, &request("a", 2, 2)).await;
    for _ in 0..3 {
        assert_eq!(granted(store, name, &request("a", 2, 2)).await, first);
    }
    assert_eq!(view(store, name).await.in_flight, 2);
}

async fn what_can_never_be_had_is_impossible(store: &dyn BulkheadStore) {
    let name = "impossible";
    for request in [request("a", 6, 5), request("a", 1, 0)] {
        assert_eq!(ask(store, name, &request).await, Admission::Impossible);
    }
    assert_eq!(view(store, name).await, BulkheadView::default());
}

async fn a_lease_ends_on_the_stores_clock_and_its_place_is_reclaimed(store: &dyn BulkheadStore) {
    let name = "ends";
    let brief = AcquireRequest {
        lease_ms: BRIEF,
        ..request("dies", 1, 1)
    };
    let dead = granted(store, name, &brief).await;
    let next = AtomicU64::new(0);
    eventually("the place is reclaimed", SOON, || async {
        match ask(store, name, &request("next", 1, 1)).await {
            Admission::Granted { fence } => {
                next.store(fence, SeqCst);
                true
            }
            Admission::Full { again_ms } => {
                assert!(again_ms <= BRIEF, "{again_ms}");
                false
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
    let next = next.into_inner();
    assert!(next > dead, "{next} is not above {dead}");
    assert_eq!(view(store, name).await.in_flight, 1);
}

async fn a_renewed_lease_goes_on(store: &dyn BulkheadStore) {
    let name = "renewed";
    let brief = AcquireRequest {
        lease_ms: 2_000,
        ..request("a", 1, 1)
    };
    let fence = granted(store, name, &brief).await;
    let (kept, seen) = store
        .renew(name, &beat(LONG, &[("a", 1, fence)]))
        .await
        .expect("an answer");
    assert_eq!(kept, [true]);
    assert_eq!((seen.in_flight, seen.live), (1, 1));
    let Admission::Full { again_ms } = ask(store, name, &request("b", 1, 1)).await else {
        panic!("it is held");
    };
    assert!(again_ms > 10_000, "not renewed: {again_ms}");
}

async fn a_lost_lease_is_told_so_and_releases_nothing(store: &dyn BulkheadStore) {
    let name = "lost";
    let brief = AcquireRequest {
        lease_ms: BRIEF,
        ..request("zombie", 1, 1)
    };
    let zombie = granted(store, name, &brief).await;
    eventually("another holder has the place", SOON, || async {
        matches!(
            ask(store, name, &request("next", 1, 1)).await,
            Admission::Granted { .. }
        )
    })
    .await;
    let (kept, _) = store
        .renew(name, &beat(LONG, &[("zombie", 1, zombie)]))
        .await
        .expect("an answer");
    assert_eq!(kept, [false]);
    assert!(!release(store, name, "zombie", Some(zombie)).await);
    assert_eq!(view(store, name).await.in_flight, 1);
    assert!(is_full(store, name, &request("third", 1, 1)).await);
}

async fn only_the_holder_releases(store: &dyn BulkheadStore) {
    let name = "holder";
    let fence = granted(store, name, &request("a", 1, 1)).await;
    for wrong in [fence - 1, fence + 1, 0] {
        assert!(!release(store, name, "a", Some(wrong)).await);
        let (kept, _) = store
            .renew(name, &beat(LONG, &[("a", 1, wrong)]))
            .await
            .expect("an answer");
        assert_eq!(kept, [false]);
    }
    assert!(!release(store, name, "b", Some(fence)).await);
    assert_eq!(view(store, name).await.in_flight, 1);
    assert!(release(store, name, "a", Some(fence)).await);
    assert!(!release(store, name, "a", Some(fence)).await);
}

async fn fences_only_go_up(store: &dyn BulkheadStore) {
    let (name, mut last) = ("fences", 0);
    for round in 0..50 {
        let lease = format!("lease-{round}");
        let fence = granted(store, name, &request(&lease, 1, 100)).await;
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        if round % 2 == 0 {
            assert!(release(store, name, &lease, Some(fence)).await);
        }
    }
}

/// What a server that lost its memory is told by the heartbeats of those who did not.
async fn a_lease_older_than_the_record_is_entered_anew(store: &dyn BulkheadStore) {
    let (before, after) = ("before", "after");
    let old = granted(store, before, &request("old", 2, 4)).await;
    let older = granted(store, before, &request("older", 1, 4)).await;
    // A record that knows nothing of them stands for one that was lost.
    let new = granted(store, after, &request("new", 3, 4)).await;
    assert!(new > old);
    let holdings = [("old", 2, old), ("older", 1, older), ("new", 3, new)];
    let (kept, seen) = store
        .renew(after, &beat(LONG, &holdings))
        .await
        .expect("an answer");
    assert_eq!(kept, [true, true, true]);
    assert_eq!((seen.in_flight, seen.leases), (6, 3), "room or no room");
    assert!(is_full(store, after, &request("next", 1, 4)).await);
    assert!(release(store, after, "old", Some(old)).await);
    let later = granted(store, after, &request("next", 1, 5)).await;
    assert!(later > new);
    let young = [("unheard", 1, later)];
    let (kept, _) = store
        .renew(after, &beat(LONG, &young))
        .await
        .expect("an answer");
    assert_eq!(kept, [false], "one that is younger has run out");
}

fn queued(lease: &str, cost: u64, limit: u64) -> AcquireRequest {
    AcquireRequest {
        ticket_ms: LONG,
        ..request(lease, cost, limit)
    }
}

/// Waits until calls about `name` are heard: a subscription takes a moment, and calls may be lost before.
async fn listening(store: &dyn BulkheadStore, name: &str) -> Wakeups {
    let mut calls = store.subscribe(name);
    eventually("the subscription stands", SOON, || async {
        granted(store, name, &request("blocker", 1, 1)).await;
        assert!(is_full(store, name, &queued("probe", 1, 1)).await);
        let mut heard = store.subscribe(name);
        heard.catch_up();
        assert!(release(store, name, "blocker", None).await);
        let heard = heard.wait_for(|leases| leases.iter().any(|lease| **lease == *"probe"));
        let told = tokio::time::timeout(Duration::from_millis(100), heard).await;
        release(store, name, "probe", None).await;
        told.is_ok()
    })
    .await;
    calls.catch_up();
    calls
}

async fn who_waits_is_called_up_in_order_of_arrival(store: &dyn BulkheadStore) {
    let name = "order";
    let mut calls = listening(store, name).await;
    let a = granted(store, name, &request("a", 2, 3)).await;
    granted(store, name, &request("b", 1, 3)).await;
    for lease in ["first", "second", "third"] {
        assert!(is_full(store, name, &queued(lease, 1, 3)).await);
    }
    assert_eq!(view(store, name).await.waiting, 3);
    assert!(release(store, name, "a", Some(a)).await);
    for (lease, calls) in ["first", "second"]
        .iter()
        .zip([&mut calls.clone(), &mut calls])
    {
        let named = |leases: &Arc<[Arc<str>]>| leases.iter().any(|woken| **woken == **lease);
        tokio::time::timeout(SOON, calls.wait_for(named))
            .await
            .unwrap_or_else(|_| panic!("{lease} is not called up"));
    }
    assert!(is_full(store, name, &queued("third", 1, 3)).await);
    granted(store, name, &queued("second", 1, 3)).await;
    granted(store, name, &queued("first", 1, 3)).await;
    assert_eq!(view(store, name).await.waiting, 1);
}

async fn a_newcomer_does_not_overtake(store: &dyn BulkheadStore) {
    let name = "newcomer";
    granted(store, name, &request("a", 2, 4)).await;
    assert!(is_full(store, name, &queued("large", 3, 4)).await);
    assert!(is_full(store, name, &request("small", 1, 4)).await);
    assert!(is_full(store, name, &queued("small", 1, 4)).await);
    assert!(release(store, name, "a", None).await);
    granted(store, name, &queued("small", 1, 4)).await;
    granted(store, name, &queued("large", 3, 4)).await;
}

async fn who_leaves_the_queue_makes_room(store: &dyn BulkheadStore) {
    let name = "leaves";
    granted(store, name, &request("a", 1, 2)).await;
    assert!(is_full(store, name, &queued("large", 2, 2)).await);
    assert!(is_full(store, name, &queued("small", 1, 2)).await);
    assert!(!release(store, name, "large", None).await, "no lease");
    granted(store, name, &queued("small", 1, 2)).await;
    assert_eq!(view(store, name).await.waiting, 0);
}

async fn a_dead_waiter_blocks_for_no_longer_than_its_position_lasts(store: &dyn BulkheadStore) {
    let name = "dead-waiter";
    granted(store, name, &request("a", 1, 2)).await;
    let dead = AcquireRequest {
        ticket_ms: BRIEF,
        ..request("dead", 2, 2)
    };
    assert!(is_full(store, name, &dead).await);
    eventually("its position lapses", SOON, || async {
        match ask(store, name, &request("next", 1, 2)).await {
            Admission::Granted { .. } => true,
            Admission::Full { again_ms } => {
                assert!(again_ms <= BRIEF, "{again_ms}");
                false
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

async fn an_instance_is_live_for_as_long_as_it_said(store: &dyn BulkheadStore) {
    let name = "live";
    let of = |instance: &str, live_ms| Heartbeat {
        instance: instance.into(),
        live_ms,
        ..beat(LONG, &[])
    };
    store.renew(name, &of("long", LONG)).await.expect("ok");
    let (_, seen) = store.renew(name, &of("brief", 2_000)).await.expect("ok");
    assert_eq!(seen.live, 2);
    eventually("one of them is gone", SOON, || async {
        view(store, name).await.live == 1
    })
    .await;
}

async fn names_do_not_leak_into_each_other(store: &dyn BulkheadStore) {
    let names = [
        "leak",
        "leak:a",
        "leak}:a",
        "",
        "ä 🦀\n",
        &"long".repeat(200),
    ];
    for name in names {
        granted(store, name, &request("same", 1, 1)).await;
        assert!(is_full(store, name, &request("other", 1, 1)).await);
    }
    for name in names {
        assert!(release(store, name, "same", None).await);
    }
}

async fn each_wish_goes_by_the_limit_that_it_knows(store: &dyn BulkheadStore) {
    let name = "limits";
    granted(store, name, &request("a", 1, 4)).await;
    let most = (1 << 53) - 1;
    assert!(is_full(store, name, &request("b", 1, 1)).await);
    assert!(is_full(store, name, &request("b", most, most)).await);
    granted(store, name, &request("b", most - 1, most)).await;
    assert_eq!(view(store, name).await.in_flight, most);
}

async fn a_crowd_never_holds_more_than_there_is(store: &Arc<dyn BulkheadStore>) {
    const PLACES: u64 = 5;
    let held = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..20)
        .map(|task| {
            let (store, held) = (Arc::clone(store), Arc::clone(&held));
            tokio::spawn(async move {
                let mut got = 0;
                for round in 0..20_u64 {
                    let (lease, cost) = (format!("{task}-{round}"), 1 + (task + round) % 3);
                    let answer = ask(&*store, "crowd", &request(&lease, cost, PLACES)).await;
                    if let Admission::Granted { fence } = answer {
                        let now = held.fetch_add(cost, SeqCst) + cost;
                        assert!(now <= PLACES, "{now} at once");
                        tokio::task::yield_now().await;
                        held.fetch_sub(cost, SeqCst);
                        assert!(release(&*store, "crowd", &lease, Some(fence)).await);
                        got += 1;
                    }
                }
                got
            })
        })
        .collect();
    let mut got = 0;
    for task in tasks {
        got += task.await.expect("no panic");
    }
    assert!(got > 20, "{got} of 400 were granted");
    let empty = view(&**store, "crowd").await;
    assert_eq!((empty.in_flight, empty.leases), (0, 0));
}
