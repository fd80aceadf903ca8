//! One suite for every store of cached values, asked through the trait.
//!
//! Each check takes fresh keys, so that all can run on one server. Times are real: they are so long that they do not end
//! while a check runs, or so short that their end is waited for with a bound.

mod bounds;
mod fills;
mod observers;
mod tags;
mod writes;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::cache::{
    CacheStore,
    record::{Entry, Fill, Lease, Leased, Stored, Token},
};

const HOUR: u64 = 3_600_000;
const SOON: Duration = Duration::from_secs(10);
const NAME: &str = "conformance";

/// Runs every check on `store`; `flush` makes it forget everything.
pub async fn all(store: &Arc<dyn CacheStore>, flush: &(dyn Fn() + Sync)) {
    let it = &**store;
    fills::a_miss_is_leased_filled_and_hit(it).await;
    fills::one_caller_loads_and_others_are_told_so(it).await;
    fills::a_lease_that_ends_is_granted_to_another(it).await;
    fills::a_stale_value_is_kept_while_it_is_loaded(it).await;
    fills::a_lease_outlives_the_value_beside_it(it).await;
    fills::a_fresh_value_is_loaded_again_on_request(it).await;
    fills::a_lease_that_is_renewed_does_not_end_and_one_that_is_lost_is_not_renewed(it).await;
    fills::a_lease_is_given_back_by_its_holder_only(it).await;
    fills::a_fill_without_its_lease_is_refused(it).await;
    fills::a_value_is_forgotten_when_its_time_is_over(it).await;
    fills::no_value_and_an_empty_value_are_two_things(it).await;
    fills::a_crowd_gets_one_lease(store).await;
    writes::an_invalidation_refuses_what_was_loaded_before(it).await;
    writes::a_tombstone_refuses_leases_until_it_is_over(it).await;
    writes::an_invalidation_without_a_tombstone_leaves_nothing(it).await;
    writes::a_write_stores_its_value(it).await;
    writes::nothing_is_stored_during_a_write(it).await;
    writes::a_write_in_doubt_leaves_an_invalidation(it).await;
    writes::of_two_writes_at_once_neither_is_stored(it).await;
    writes::an_invalidation_during_a_write_wins(it).await;
    writes::a_write_that_is_never_ended_ends_by_itself(it).await;
    writes::a_write_that_did_not_begin_invalidates(it).await;
    tags::a_generation_lasts_until_it_is_invalidated(it).await;
    tags::tags_do_not_leak_into_each_other(it).await;
    tags::a_lost_tag_gets_another_generation(it, flush).await;
    bounds::many_keys_are_read_in_their_order(it).await;
    bounds::names_and_keys_do_not_leak_into_each_other(it).await;
    bounds::every_byte_and_number_is_returned(it).await;
    bounds::what_makes_no_sense_is_refused(it).await;
    bounds::what_is_lost_is_a_miss(it, flush).await;
}

/// Runs every check on a store that [tells of changes](CacheStore::observe).
pub async fn observing(store: &Arc<dyn CacheStore>, flush: &(dyn Fn() + Sync)) {
    observers::every_change_after_a_read_is_told(&**store, flush).await;
    observers::a_change_by_another_process_is_told(&**store).await;
}

/// A value that is fresh for an hour and kept for two.
fn value(body: &'static str) -> Fill {
    Fill {
        body: Some(Bytes::from_static(body.as_bytes())),
        fresh_ms: HOUR,
        keep_ms: 2 * HOUR,
        load_ms: 7,
        tags: [].into(),
    }
}

/// A value that is stale at once, and kept for an hour.
fn stale(body: &'static str) -> Fill {
    Fill {
        fresh_ms: 0,
        ..value(body)
    }
}

/// A lease of an hour.
fn hour() -> Lease {
    lasting(HOUR)
}

fn lasting(lease_ms: u64) -> Lease {
    Lease {
        token: Token::random(),
        lease_ms,
        renew: None,
    }
}

async fn get(store: &dyn CacheStore, key: &str) -> Option<Entry> {
    let mut got = store.get(NAME, &[key]).await.expect("an answer");
    assert_eq!(got.len(), 1);
    got.remove(0)
}

/// The value of a key, as text.
async fn text(store: &dyn CacheStore, key: &str) -> Option<String> {
    get(store, key).await.map(|entry| body(&entry))
}

fn body(entry: &Entry) -> String {
    let body = entry.body.as_deref().expect("a value");
    String::from_utf8_lossy(body).into_owned()
}

async fn lease(store: &dyn CacheStore, key: &str, lease: &Lease) -> Leased {
    store.lease(NAME, key, lease).await.expect("an answer")
}

/// Takes a lease that is granted; the stale value, as text.
async fn granted(store: &dyn CacheStore, key: &str, asked: &Lease) -> Option<String> {
    match lease(store, key, asked).await {
        Leased::Granted { stale } => stale.as_ref().map(body),
        other => panic!("not granted: {other:?}"),
    }
}

async fn fill(store: &dyn CacheStore, key: &str, lease: &Lease, fill: &Fill) -> Stored {
    let filled = store.fill(NAME, key, lease.token, fill).await;
    filled.expect("an answer")
}

async fn put(store: &dyn CacheStore, key: &str, fill: &Fill) -> (Token, Stored) {
    let version = Token::random();
    let put = store.put(NAME, key, version, fill).await;
    (version, put.expect("an answer"))
}

async fn invalidate(store: &dyn CacheStore, key: &str, tombstone_ms: u64) {
    let done = store.invalidate(NAME, key, tombstone_ms).await;
    done.expect("an answer");
}

async fn is_refused(store: &dyn CacheStore, key: &str) -> bool {
    matches!(lease(store, key, &hour()).await, Leased::Refused { .. })
}
