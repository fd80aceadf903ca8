//! What the breaker of a host sees.

use super::*;

#[tokio::test]
async fn a_host_that_fails_is_cut_off_and_others_are_not() {
    let down = Server::start(|_| answer("500 No", "", "")).await;
    let well = Server::start(|_| answer("200 OK", "", "paid")).await;
    let builder = builder().breaker(breakers(2)).without_retry();
    let client = builder.build().unwrap();
    for _ in 0..2 {
        client.get(down.url()).send().await.unwrap();
    }
    let rejected = rejected(client.get(down.url()).send().await);
    assert_eq!(rejected.pattern(), Pattern::CircuitBreaker);
    assert_eq!(rejected.reason(), Reason::Open);
    assert!(rejected.retry_after().is_some());
    assert_eq!(down.requests(), 2, "an open breaker keeps calls away");
    assert_eq!(client.get(well.url()).send().await.unwrap().status(), 200);
    let all = client.breakers().unwrap();
    assert_eq!(all.get(&host(&down)).state(), State::Open);
    assert_eq!(all.get(&host(&well)).state(), State::Closed);
}

#[tokio::test]
async fn a_refused_connection_is_a_failure_and_its_error_is_reqwests() {
    // A port that was free a moment ago, without a listener.
    let url = Server::start(|_| Vec::new()).await.url();
    let client = builder().breaker(breakers(3)).build().unwrap();
    let error = loop {
        match client.get(&url).send().await {
            Err(Error::Service(error)) if error.is_connect() => break error,
            // The server's task may take a moment to end.
            Err(Error::Service(_)) => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    };
    assert!(error.url().is_some());
    let rejected = rejected(client.get(&url).send().await);
    assert_eq!(rejected.reason(), Reason::Open);
}

#[tokio::test]
async fn an_open_breaker_does_not_use_up_the_retries() {
    let down = Server::start(|_| answer("500 No", "", "")).await;
    let client = builder().breaker(breakers(1)).build().unwrap();
    rejected(client.get(down.url()).send().await);
    let before = client.retry().unwrap().snapshot().retries;
    rejected(client.get(down.url()).send().await);
    assert_eq!(client.retry().unwrap().snapshot().retries, before);
    assert_eq!(down.requests(), 1);
}

#[tokio::test]
async fn a_body_that_is_reset_half_way_is_a_failure_for_the_breaker() {
    let steps = || vec![head("200 OK", "", 100), write("half of it"), Step::Reset];
    let server = Server::start(move |_| steps()).await;
    let client = builder().breaker(breakers(2)).build().unwrap();
    for _ in 0..2 {
        let response = client.get(server.url()).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let error = response.bytes().await.unwrap_err();
        assert!(!error.is_timeout(), "{error:?}");
    }
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.snapshot().totals.failures, 2);
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_a_failure_for_the_breaker() {
    let cut = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let cut = Step::Write(format!("HTTP/1.1 200 OK\r\n{cut}"));
    let server = Server::start(move |_| vec![cut.clone(), Step::Close]).await;
    let client = builder().breaker(breakers(1)).build().unwrap();
    let response = client.get(server.url()).send().await.unwrap();
    response.text().await.unwrap_err();
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_slow_body_that_comes_whole_is_a_success() {
    let pieces = || (0..5).flat_map(|_| [write("x"), Step::Pause(5 * MS)]);
    let steps = move |_| std::iter::once(head("200 OK", "", 5)).chain(pieces());
    let server = Server::start(move |n| steps(n).collect()).await;
    let client = builder().breaker(breakers(1)).build().unwrap();
    let response = client.get(server.url()).send().await.unwrap();
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.snapshot().totals.successes, 0, "not before its end");
    assert_eq!(response.text().await.unwrap(), "xxxxx");
    assert_eq!(breaker.snapshot().totals.successes, 1);
}

#[tokio::test(start_paused = true)]
async fn the_classifier_can_be_replaced() {
    let fake = Fake::new(|_| fake::answer(404, &[], ""));
    let strict = |result: Result<&Response, &Error<reqwest::Error>>| match result {
        Ok(response) if response.status() == 404 => Verdict::transient(),
        _ => Verdict::Success,
    };
    let strict = resilience_core::classify::results(strict);
    let client = fake.client(builder().classify(strict).breaker(breakers(3)));
    client.get("http://a.test/").send().await.unwrap();
    assert_eq!(fake.attempts(), 3, "the retry reads the same verdict");
    let rejected = rejected(client.get("http://a.test/").send().await);
    assert_eq!(rejected.reason(), Reason::Open);
}
