//! Leases, fills, and the end of values.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{HOUR, NAME, SOON, fill, get, granted, hour, lasting, lease, put, stale, text, value};
use crate::{
    cache::{
        CacheStore,
        record::{Entry, Fill, Lease, Leased, Stored, Token},
    },
    conformance::eventually,
};

pub(super) async fn a_miss_is_leased_filled_and_hit(store: &dyn CacheStore) {
    let (key, asked) = ("miss", hour());
    assert_eq!(get(store, key).await, None);
    assert_eq!(granted(store, key, &asked).await, None);
    assert_eq!(get(store, key).await, None, "a lease is no value");
    let apple = value("apple");
    assert_eq!(fill(store, key, &asked, &apple).await, Stored::Stored);
    let entry = get(store, key).await.expect("it is stored");
    assert_eq!(entry.version, asked.token);
    assert_eq!(entry.body, apple.body);
    let times = (entry.fresh_ms, entry.keep_ms, entry.load_ms);
    assert_eq!(times, (HOUR, 2 * HOUR, 7));
    assert!(entry.is_fresh() && entry.age_ms < HOUR / 2, "{entry:?}");
    let Leased::Fresh(again) = lease(store, key, &hour()).await else {
        panic!("it is fresh");
    };
    let age_ms = entry.age_ms;
    assert_eq!(Entry { age_ms, ..again }, entry);
}

pub(super) async fn one_caller_loads_and_others_are_told_so(store: &dyn CacheStore) {
    let (key, asked) = ("one", hour());
    assert_eq!(granted(store, key, &asked).await, None);
    for _ in 0..3 {
        let Leased::Held { left_ms, stale } = lease(store, key, &hour()).await else {
            panic!("another caller loads");
        };
        assert!((HOUR / 2..=HOUR).contains(&left_ms), "{left_ms}");
        assert_eq!(stale, None);
        assert_eq!(granted(store, key, &asked).await, None, "repeated");
    }
    assert_eq!(fill(store, key, &asked, &value("a")).await, Stored::Stored);
}

pub(super) async fn a_lease_that_ends_is_granted_to_another(store: &dyn CacheStore) {
    let (key, first, second) = ("ends", lasting(30), hour());
    assert_eq!(granted(store, key, &first).await, None);
    eventually("the lease ends", SOON, || async {
        matches!(lease(store, key, &second).await, Leased::Granted { .. })
    })
    .await;
    let late = fill(store, key, &first, &value("late")).await;
    assert_eq!(late, Stored::Refused);
    assert_eq!(fill(store, key, &second, &value("b")).await, Stored::Stored);
    assert_eq!(text(store, key).await.as_deref(), Some("b"));
}

pub(super) async fn a_stale_value_is_kept_while_it_is_loaded(store: &dyn CacheStore) {
    let (key, asked) = ("stale", hour());
    let (version, stored) = put(store, key, &stale("old")).await;
    assert_eq!(stored, Stored::Stored);
    let entry = get(store, key).await.expect("it is kept");
    assert!(!entry.is_fresh() && entry.version == version, "{entry:?}");
    assert_eq!(granted(store, key, &asked).await.as_deref(), Some("old"));
    let Leased::Held { left_ms, stale } = lease(store, key, &hour()).await else {
        panic!("another caller loads");
    };
    assert!((HOUR / 2..=HOUR).contains(&left_ms), "{left_ms}");
    assert_eq!(stale.expect("it is kept").version, version);
    assert_eq!(text(store, key).await.as_deref(), Some("old"));
    assert_eq!(
        fill(store, key, &asked, &value("new")).await,
        Stored::Stored
    );
    let entry = get(store, key).await.expect("it is stored");
    assert!(entry.is_fresh() && entry.version == asked.token);
}

pub(super) async fn a_lease_outlives_the_value_beside_it(store: &dyn CacheStore) {
    let (key, asked) = ("outlives", hour());
    let brief = Fill {
        keep_ms: 300,
        ..stale("old")
    };
    // On a busy machine, the value may be over before it is leased.
    put(store, key, &brief).await;
    granted(store, key, &asked).await;
    eventually("the value is over", SOON, || async {
        get(store, key).await.is_none()
    })
    .await;
    let Leased::Held { stale, .. } = lease(store, key, &hour()).await else {
        panic!("another caller loads");
    };
    assert_eq!(stale, None);
    assert_eq!(
        fill(store, key, &asked, &value("new")).await,
        Stored::Stored
    );
    assert_eq!(text(store, key).await.as_deref(), Some("new"));
}

pub(super) async fn a_fresh_value_is_loaded_again_on_request(store: &dyn CacheStore) {
    let key = "renew";
    let (version, _) = put(store, key, &value("old")).await;
    let renewing = |version| Lease {
        renew: Some(version),
        ..hour()
    };
    let other = lease(store, key, &renewing(Token::random())).await;
    assert!(matches!(other, Leased::Fresh(_)), "another version");
    let asked = renewing(version);
    assert_eq!(granted(store, key, &asked).await.as_deref(), Some("old"));
    let plain = lease(store, key, &hour()).await;
    assert!(matches!(plain, Leased::Fresh(_)), "{plain:?}");
    let second = lease(store, key, &renewing(version)).await;
    let Leased::Held { stale: Some(_), .. } = second else {
        panic!("another caller loads: {second:?}");
    };
    assert_eq!(
        fill(store, key, &asked, &value("new")).await,
        Stored::Stored
    );
    let late = lease(store, key, &renewing(version)).await;
    assert!(matches!(late, Leased::Fresh(entry) if entry.version == asked.token));
}

pub(super) async fn a_lease_that_is_renewed_does_not_end_and_one_that_is_lost_is_not_renewed(
    store: &dyn CacheStore,
) {
    let extend = async |key: &str, token, ms| {
        let extended = store.extend(NAME, key, token, ms).await;
        extended.expect("an answer")
    };
    for (key, kept) in [("renewed", None), ("renewed-stale", Some("old"))] {
        if kept.is_some() {
            put(store, key, &stale("old")).await;
        }
        let brief = Lease {
            lease_ms: 2_000,
            ..hour()
        };
        granted(store, key, &brief).await;
        assert_eq!(extend(key, hour().token, HOUR).await, Stored::Refused);
        assert_eq!(extend(key, brief.token, HOUR).await, Stored::Stored);
        let other = lease(store, key, &hour()).await;
        assert!(
            matches!(other, Leased::Held { left_ms, .. } if left_ms > 3_000),
            "{other:?}"
        );
        store.invalidate(NAME, key, 0).await.expect("done");
        assert_eq!(extend(key, brief.token, HOUR).await, Stored::Refused);
        let late = fill(store, key, &brief, &value("late")).await;
        assert_eq!(late, Stored::Refused);
        granted(store, key, &hour()).await;
    }
}

pub(super) async fn a_lease_is_given_back_by_its_holder_only(store: &dyn CacheStore) {
    let release = async |key: &str, token| store.release(NAME, key, token).await.expect("done");
    for (key, kept) in [("back", None), ("back-stale", Some("old"))] {
        if kept.is_some() {
            put(store, key, &stale("old")).await;
        }
        let (asked, other) = (hour(), hour());
        assert_eq!(granted(store, key, &asked).await.as_deref(), kept);
        release(key, other.token).await;
        let held = lease(store, key, &other).await;
        assert!(matches!(held, Leased::Held { .. }), "{held:?}");
        for _ in 0..2 {
            release(key, asked.token).await;
        }
        assert_eq!(text(store, key).await.as_deref(), kept);
        let late = fill(store, key, &asked, &value("late")).await;
        assert_eq!(late, Stored::Refused);
        assert_eq!(granted(store, key, &other).await.as_deref(), kept);
        release(key, asked.token).await;
        assert_eq!(
            fill(store, key, &other, &value("new")).await,
            Stored::Stored
        );
    }
}

pub(super) async fn a_fill_without_its_lease_is_refused(store: &dyn CacheStore) {
    let (key, asked) = ("unleased", hour());
    assert_eq!(fill(store, key, &asked, &value("a")).await, Stored::Refused);
    assert_eq!(get(store, key).await, None);
    granted(store, key, &asked).await;
    let other = fill(store, key, &hour(), &value("other")).await;
    assert_eq!(other, Stored::Refused);
    for _ in 0..2 {
        let filled = fill(store, key, &asked, &value("a")).await;
        assert_eq!(filled, Stored::Stored, "repeated, too");
    }
    // Another value came in between.
    let late = Lease {
        renew: Some(asked.token),
        ..hour()
    };
    granted(store, key, &late).await;
    put(store, key, &value("latest")).await;
    let filled = fill(store, key, &late, &value("late")).await;
    assert_eq!(filled, Stored::Refused);
    let again = fill(store, key, &asked, &value("a")).await;
    assert_eq!(again, Stored::Refused, "replaced since");
    assert_eq!(text(store, key).await.as_deref(), Some("latest"));
}

pub(super) async fn a_value_is_forgotten_when_its_time_is_over(store: &dyn CacheStore) {
    let (key, brief) = (
        "over",
        Fill {
            fresh_ms: 30,
            keep_ms: 30,
            ..value("brief")
        },
    );
    put(store, key, &brief).await;
    eventually("the value is over", SOON, || async {
        get(store, key).await.is_none()
    })
    .await;
    assert_eq!(granted(store, key, &hour()).await, None);
}

pub(super) async fn no_value_and_an_empty_value_are_two_things(store: &dyn CacheStore) {
    let (none, empty) = (
        Fill {
            body: None,
            ..value("")
        },
        value(""),
    );
    for fill in [none, empty] {
        put(store, "negative", &fill).await;
        let entry = get(store, "negative").await.expect("it is known");
        assert_eq!(entry.body, fill.body);
    }
}

pub(super) async fn a_crowd_gets_one_lease(store: &Arc<dyn CacheStore>) {
    for round in 0..10 {
        let mut crowd = JoinSet::new();
        for _ in 0..32 {
            let store = Arc::clone(store);
            crowd.spawn(async move {
                let leased = lease(&*store, &format!("crowd-{round}"), &hour()).await;
                u32::from(matches!(leased, Leased::Granted { .. }))
            });
        }
        let granted: u32 = crowd.join_all().await.into_iter().sum();
        assert_eq!(granted, 1);
    }
}
