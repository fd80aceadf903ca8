//! The advertised limits of servers are enforced.

use resilience_core::limit::{store::InProcessLimits, upstream::UpstreamLimits};

use super::*;

fn upstreams() -> UpstreamLimits {
    UpstreamLimits::builder("peers").build().unwrap()
}

#[tokio::test]
async fn after_a_429_nothing_is_sent_to_that_server_and_its_breaker_hears_nothing_of_that() {
    let server = Server::start(|_| answer("429 No", "retry-after: 60\r\n", "")).await;
    let other = Server::start(|_| answer("200 OK", "", "")).await;
    let builder = builder().without_retry().breaker(breakers(2));
    let client = builder.upstream_limits(upstreams()).build().unwrap();
    let first = client.get(server.url()).send().await.unwrap();
    assert_eq!(first.status(), 429);
    for _ in 0..5 {
        let rejected = rejected(client.get(server.url()).send().await);
        assert_eq!(rejected.reason(), Reason::RateLimited);
        let wait = rejected.retry_after().unwrap();
        assert!(wait > 50_000 * MS && wait <= 60_000 * MS, "{wait:?}");
    }
    assert_eq!(server.requests(), 1);
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.snapshot().state, State::Closed);
    assert_eq!(client.get(other.url()).send().await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_retry_comes_back_when_the_time_is_over_and_passes() {
    let fake = Fake::new(|n| match n {
        1 => fake::answer(429, &[("retry-after", "2")], ""),
        _ => fake::answer(200, &[], ""),
    });
    let client = fake.client(builder().upstream_limits(upstreams()));
    let start = Instant::now();
    let response = client.get("http://a.test/").send().await.unwrap();
    assert_eq!((response.status().as_u16(), fake.attempts()), (200, 2));
    assert!(start.elapsed() >= 2_000 * MS, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_than_a_server_says_is_left() {
    let fake = Fake::new(|n| match n {
        1 => fake::answer(200, &[("ratelimit", r#""a";r=3;t=10"#)], ""),
        _ => fake::answer(200, &[], ""),
    });
    let client = fake.client(builder().upstream_limits(upstreams()));
    let send = || client.get("http://a.test/").send();
    for _ in 0..4 {
        send().await.unwrap();
    }
    let wait = rejected(send().await).retry_after().unwrap();
    assert!(wait <= 10_000 * MS && wait > 9_000 * MS, "{wait:?}");
    tokio::time::advance(wait).await;
    send().await.unwrap();
    assert_eq!(fake.attempts(), 5);
}

#[tokio::test(start_paused = true)]
async fn clients_that_share_a_store_share_what_they_were_told() {
    let store = InProcessLimits::new();
    let client = |status: u16| {
        let upstreams = UpstreamLimits::builder("peers").store(store.clone());
        let fake = Fake::new(move |_| fake::answer(status, &[("retry-after", "30")], ""));
        let client = fake.client(
            builder()
                .without_retry()
                .upstream_limits(upstreams.build().unwrap()),
        );
        (client, fake)
    };
    let ((told, _), (other, fake)) = (client(429), client(200));
    let send = async |client: &Client| client.get("http://a.test/").send().await;
    send(&told).await.unwrap();
    // Its first call asks the store, which responds at once.
    send(&other).await.unwrap();
    tokio::time::sleep(10 * MS).await;
    assert_eq!(rejected(send(&other).await).reason(), Reason::RateLimited);
    assert_eq!(fake.attempts(), 1);
}
