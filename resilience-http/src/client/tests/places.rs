//! Permits of the bulkhead.

use super::*;

fn one_place() -> ClientBuilder {
    let bulkhead = Bulkhead::builder("pay").max_concurrent(1);
    builder().bulkhead(bulkhead.keyed(Keyed::new()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_is_read_or_dropped() {
    let fake = Fake::new(|_| fake::answer(200, &[], "paid"));
    let client = fake.client(one_place());
    let first = client.get("http://a.test/").send().await.unwrap();
    let full = rejected(client.get("http://a.test/").send().await);
    assert_eq!(
        (full.pattern(), full.reason()),
        (Pattern::Bulkhead, Reason::Full)
    );
    client.get("http://b.test/").send().await.unwrap();
    first.text().await.unwrap();
    let second = client.get("http://a.test/").send().await.unwrap();
    rejected(client.get("http://a.test/").send().await);
    drop(second);
    client.get("http://a.test/").send().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_is_not_held_against_the_server() {
    let fake = Fake::new(|_| fake::answer(200, &[], "paid"));
    let client = fake.client(one_place().breaker(breakers(1)));
    let first = client.get("http://a.test/").send().await.unwrap();
    rejected(client.get("http://a.test/").send().await);
    drop(first);
    let breaker = client.breakers().unwrap().get(&Host::new("a.test", 80));
    assert_eq!(
        (breaker.state(), breaker.snapshot().totals.failures),
        (State::Closed, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_gives_its_place_back() {
    let fake = Fake::new(|_| fake::hang());
    let client = fake.client(one_place());
    let call = client.get("http://a.test/").send();
    assert!(tokio::time::timeout(MS, call).await.is_err());
    assert_eq!(client.bulkheads().unwrap().snapshot().in_flight, 0);
}
