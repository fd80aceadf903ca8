//! Names, and what each instance does by itself.

use crate::breaker::{
    State,
    fleet::{BreakerMembers, MOST_MEMBERS},
};

use super::*;

pub(super) async fn all(store: &dyn BreakerStore) {
    an_unknown_breaker_has_no_members(store).await;
    each_instance_is_named_with_what_it_reported_last(store).await;
    who_fell_silent_is_named_no_longer(store).await;
    the_list_is_bounded_and_the_count_is_not(store).await;
}

async fn members(store: &dyn BreakerStore, name: &str) -> BreakerMembers {
    store.members(name).await.expect("the members")
}

async fn an_unknown_breaker_has_no_members(store: &dyn BreakerStore) {
    let seen = members(store, "no members").await;
    assert_eq!(seen, BreakerMembers::default());
}

async fn each_instance_is_named_with_what_it_reported_last(store: &dyn BreakerStore) {
    let name = "members";
    let told = |instance: &str, voter: &str, failing, state| Report {
        voter: voter.into(),
        failing,
        state,
        ..report(instance, 1, 0, 1, 0)
    };
    for report in [
        told("pod-2-ff", "pod-2", true, Some(State::Open)),
        told("pod-1-ff", "pod-1", false, Some(State::RampingUp)),
        // Without a name of its own; a name may contain anything.
        told("a:b%", "a:b%", true, Some(State::Disabled)),
        told("untold", "untold", false, None),
    ] {
        store.report(name, &report).await.expect("merged");
    }
    let seen = members(store, name).await;
    assert_eq!((seen.live, seen.failing), (4, 2));
    assert_eq!(seen.failing_names, ["a:b%", "pod-2"]);
    let each: Vec<_> = seen
        .instances
        .iter()
        .map(|one| (&*one.instance, one.failing, one.state))
        .collect();
    let expected = [
        ("a:b%", Some(true), Some(State::Disabled)),
        ("pod-1-ff", Some(false), Some(State::RampingUp)),
        ("pod-2-ff", Some(true), Some(State::Open)),
        ("untold", Some(false), None),
    ];
    assert_eq!(each, expected);
    for one in &seen.instances {
        assert!(one.reported_ms.is_some_and(|age| age < 30_000), "{one:?}");
        assert!((30_000..=60_000).contains(&one.live_ms), "{one:?}");
    }
    // A new state of the fleet: who found it failing before says nothing of it now.
    enter(store, name, FleetState::Open, 60_000).await;
    let seen = members(store, name).await;
    assert_eq!((seen.live, seen.failing), (4, 0));
    assert!(seen.failing_names.is_empty());
    assert!(seen.instances.iter().all(|one| one.failing == Some(false)));
    let last = Report {
        live_ms: 0,
        ..told("untold", "untold", false, None)
    };
    store.report(name, &last).await.expect("merged");
    let seen = members(store, name).await;
    assert_eq!((seen.live, seen.instances.len()), (3, 3), "one has left");
}

async fn who_fell_silent_is_named_no_longer(store: &dyn BreakerStore) {
    let name = "silent members";
    let brief = Report {
        bucket_ms: 10,
        live_ms: 50,
        ..report("brief", 1, 0, 1, 1)
    };
    store.report(name, &brief).await.expect("merged");
    eventually("it is named no longer", SOON, || async {
        members(store, name).await == BreakerMembers::default()
    })
    .await;
    // What is left of it goes when others report.
    eventually("only the other is named", SOON, || async {
        let other = Report {
            bucket_ms: 10,
            ..report("other", 1, 0, 1, 0)
        };
        store.report(name, &other).await.expect("merged");
        members(store, name).await.instances.len() == 1
    })
    .await;
}

async fn the_list_is_bounded_and_the_count_is_not(store: &dyn BreakerStore) {
    let name = "many members";
    let many = MOST_MEMBERS as u64 + 20;
    for n in 0..many {
        let instance = format!("i{n:03}");
        let long = Report {
            live_ms: 600_000 + 60_000 * n,
            ..report(&instance, 1, 0, 0, 1)
        };
        store.report(name, &long).await.expect("merged");
    }
    let seen = members(store, name).await;
    assert_eq!((seen.live, seen.failing), (many, many));
    assert_eq!(seen.instances.len(), MOST_MEMBERS);
    assert_eq!(seen.failing_names.len(), MOST_MEMBERS);
    assert_eq!(
        seen.instances[0].instance, "i020",
        "those that stay longest"
    );
    assert!(seen.instances.is_sorted_by_key(|one| &one.instance));
}
