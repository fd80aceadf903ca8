//! One breaker per key.

use std::future::ready;

use tokio::time::advance;
use tower::{limit::ConcurrencyLimit, service_fn};

use super::*;
use crate::{
    Pattern,
    breaker::{KeyedCircuitBreaker, State},
    keyed::Keyed,
};

type Request = (&'static str, bool);

async fn answer((_, ok): Request) -> Result<(), Error<()>> {
    if ok { Ok(()) } else { Err(Error::Service(())) }
}

fn family(keyed: Keyed) -> KeyedCircuitBreaker<&'static str> {
    builder().keyed(keyed).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_key_that_fails_does_not_open_the_others() {
    let breakers = family(Keyed::new());
    let mut events = breakers.events();
    let mut service = breakers
        .layer(|(host, _): &Request| *host)
        .layer(service_fn(answer));
    for _ in 0..4 {
        drop(service.ready().await.unwrap().call(("bad", false)).await);
        service
            .ready()
            .await
            .unwrap()
            .call(("good", true))
            .await
            .unwrap();
    }
    let rejected = service
        .ready()
        .await
        .unwrap()
        .call(("bad", true))
        .await
        .unwrap_err();
    let rejected = rejected.rejected().unwrap();
    assert_eq!((rejected.name(), rejected.reason()), ("bad", Reason::Open));
    service
        .ready()
        .await
        .unwrap()
        .call(("good", true))
        .await
        .unwrap();
    assert_eq!(breakers.get(&"bad").state(), State::Open);
    assert_eq!(&*events.next().await.unwrap().unwrap().name, "bad");
    assert!(events.try_next().is_none());
    assert_eq!((breakers.len(), breakers.snapshots().len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn the_family_is_bounded_and_forgets_idle_keys_but_no_open_ones() {
    let breakers = builder()
        .open_for(OpenFor::fixed(3600 * SECOND))
        .keyed::<u32>(Keyed::new().max_keys(8).idle(60 * SECOND))
        .unwrap();
    trip(&breakers.get(&0));
    for key in 1..100 {
        breakers
            .get(&key)
            .acquire()
            .unwrap()
            .settle(Verdict::Success);
        assert!(breakers.len() <= 8);
    }
    assert_eq!(breakers.get(&0).state(), State::Open);
    for _ in 0..4 {
        advance(60 * SECOND).await;
        read(&breakers);
    }
    assert_eq!(breakers.len(), 1, "all but the open one");
}

fn read<K>(breakers: &KeyedCircuitBreaker<K>) -> Vec<(&'static str, &'static str, u64)>
where
    K: std::hash::Hash + Eq + std::fmt::Display + Send + Sync + 'static,
{
    let source = breakers.source();
    assert_eq!(
        (source.name(), source.pattern()),
        ("test", Pattern::CircuitBreaker)
    );
    let mut all = Vec::new();
    source.read(&mut |reading| {
        all.push((reading.metric.name, reading.attribute, reading.value));
    });
    all
}

#[tokio::test(start_paused = true)]
async fn metrics_carry_the_familys_name_and_never_go_down_when_keys_go() {
    let breakers = builder().keyed::<u32>(Keyed::new().max_keys(4)).unwrap();
    for key in 0..50 {
        breakers
            .get(&key)
            .acquire()
            .unwrap()
            .settle(Verdict::Success);
        let calls = read(&breakers)
            .into_iter()
            .find(|(name, outcome, _)| name.ends_with(".calls") && *outcome == "success");
        assert_eq!(calls.unwrap().2, u64::from(key) + 1);
        let states: u64 = read(&breakers)
            .into_iter()
            .filter(|(name, ..)| name.ends_with(".state"))
            .map(|(.., members)| members)
            .sum();
        assert_eq!(states, breakers.len() as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_under_way_when_its_key_goes_still_counts_in_the_metrics() {
    let breakers = builder().keyed::<u64>(Keyed::new().max_keys(1)).unwrap();
    let mut early = breakers.get(&0).acquire().unwrap();
    breakers.get(&1).acquire().unwrap().settle(Verdict::Success);
    early.settle(Verdict::Success);
    drop(early);
    // The map frees a member some evictions later.
    for key in 2..10_000 {
        breakers
            .get(&key)
            .acquire()
            .unwrap()
            .settle(Verdict::Success);
        let all_of_them = ("resilience.circuit_breaker.calls", "success", key + 1);
        if read(&breakers).contains(&all_of_them) {
            return;
        }
    }
    panic!("the early call was lost");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_caller_of_a_keyed_breaker_keeps_no_place_below() {
    let breakers = family(Keyed::new());
    trip(&breakers.get(&"bad"));
    let inner = ConcurrencyLimit::new(service_fn(|_: Request| ready(Ok::<_, Error<()>>(()))), 1);
    let mut idle = breakers.layer(|(host, _): &Request| *host).layer(inner);
    let mut other = idle.clone();
    let rejected = idle.ready().await.unwrap().call(("bad", true)).await;
    assert!(rejected.is_err());
    let call = async { other.ready().await.unwrap().call(("good", true)).await };
    let answered = tokio::time::timeout(SECOND, call).await;
    assert_eq!(answered.expect("the only place is free"), Ok(()));
}
