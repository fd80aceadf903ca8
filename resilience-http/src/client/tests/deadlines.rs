//! One deadline over a whole call.

use super::*;

#[tokio::test]
async fn a_server_that_hangs_after_its_head_is_left_at_the_deadline() {
    let steps = || vec![head("200 OK", "", 100), write("half"), Step::Hang];
    let server = Server::start(move |_| steps()).await;
    let builder = builder().deadline(200 * MS).breaker(breakers(1));
    let client = builder.build().unwrap();
    let start = Instant::now();
    let response = client.get(server.url()).send().await.unwrap();
    let error = response.bytes().await.unwrap_err();
    let took = start.elapsed();
    assert!(took >= 200 * MS && took < 2000 * MS, "{took:?}");
    assert!(error.is_timeout());
    let rejected = rejected_in(&error).unwrap();
    assert_eq!(
        (rejected.reason(), rejected.name()),
        (Reason::TimedOut, "pay")
    );
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.state(), State::Open, "it counts as a failure");
    let bulkheads = client.bulkheads().unwrap();
    assert_eq!(bulkheads.snapshot().in_flight, 0, "its place is free again");
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_at_the_deadline_and_that_is_its_failure() {
    let server = Server::start(|_| vec![Step::Hang]).await;
    let builder = builder().deadline(100 * MS).breaker(breakers(1));
    let client = builder.build().unwrap();
    let rejected = rejected(client.get(server.url()).send().await);
    assert_eq!(rejected.pattern(), Pattern::Deadline);
    assert_eq!(rejected.reason(), Reason::TimedOut);
    let breaker = client.breakers().unwrap().get(&host(&server));
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_makes_way_for_another() {
    let server = Server::start(|n| match n {
        1 => vec![Step::Hang],
        _ => answer("200 OK", "", "paid"),
    })
    .await;
    let builder = builder().attempt_timeout(100 * MS);
    let client = builder.build().unwrap();
    let response = client.get(server.url()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.requests()), (200, 2));
}

#[tokio::test(start_paused = true)]
async fn the_body_has_until_the_whole_calls_deadline_and_not_the_attempts() {
    let fake = Fake::new(|_| fake::slow(200, 300 * MS));
    let client = fake.client(builder().attempt_timeout(100 * MS).deadline(1000 * MS));
    let response = client.get("http://a.test/").send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_one_request_is_its_deadline_shorter_or_longer() {
    let fake = Fake::new(|_| fake::slow(200, Duration::from_secs(20)));
    let client = fake.client(builder().deadline(Duration::from_secs(10)));
    let start = Instant::now();
    let get = |timeout| client.get("http://a.test/").timeout(timeout).send();
    let response = get(Duration::from_secs(3)).await.unwrap();
    let error = response.text().await.unwrap_err();
    assert!(error.is_timeout() && rejected_in(&error).is_some());
    assert_eq!(start.elapsed().as_secs(), 3);
    let response = get(Duration::from_secs(30)).await.unwrap();
    assert_eq!(response.text().await.unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_for_ever_is_no_deadline() {
    let day = Duration::from_secs(86_400);
    let fake = Fake::new(move |_| fake::slow(200, 3 * day));
    let client = fake.client(builder());
    let call = client.get("http://a.test/").timeout(Duration::MAX);
    let response = call.send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_one_request_is_not_given_to_every_attempt_anew() {
    let fake = Fake::new(|_| fake::answer(503, &[], ""));
    let client = fake.client(builder());
    let call = client.get("http://a.test/").timeout(Duration::from_secs(3));
    call.send().await.unwrap();
    assert_eq!(fake.timeouts(), [None, None, None]);
    // Without a deadline of the whole call, it limits each attempt, as in reqwest.
    let client = fake.client(builder().without_deadline().without_retry());
    let call = client.get("http://a.test/").timeout(Duration::from_secs(3));
    call.send().await.unwrap();
    assert_eq!(fake.timeouts()[3..], [Some(Duration::from_secs(3))]);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_one_request_covers_all_of_its_attempts() {
    let fake = Fake::new(|_| fake::hang());
    let client = fake.client(builder().attempt_timeout(Duration::from_secs(2)));
    let start = Instant::now();
    let call = client.get("http://a.test/").timeout(Duration::from_secs(3));
    let rejected = rejected(call.send().await);
    assert_eq!(rejected.reason(), Reason::TimedOut);
    assert_eq!((start.elapsed().as_secs(), fake.attempts()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_outlive_the_deadline_of_the_code_around_it() {
    let fake = Fake::new(|_| fake::hang());
    let client = fake.client(builder());
    let start = Instant::now();
    let call = client.get("http://a.test/").send();
    let result = deadline::scope(Deadline::after(Duration::from_secs(2)), call).await;
    assert_eq!(rejected(result).reason(), Reason::TimedOut);
    assert_eq!(start.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn each_attempt_tells_the_time_that_is_left_then() {
    let server = Server::start(|_| answer("503 No", "", "")).await;
    let backoff = Backoff::fixed(20 * MS);
    let retry = Retry::builder("pay").max_attempts(4).backoff(backoff);
    let builder = builder().retry(retry.build().unwrap());
    let client = builder.deadline(Duration::from_secs(5)).build().unwrap();
    client.get(server.url()).send().await.unwrap();
    let told = |seen: &server::Seen| headers::deadline(&seen.headers, &headers::DEADLINE);
    let told: Vec<_> = server.seen().iter().filter_map(told).collect();
    assert_eq!(told.len(), 4);
    assert!(told[0] <= Duration::from_secs(5) && told[3] > Duration::from_secs(2));
    for pair in told.windows(2) {
        assert!(pair[1] + 19 * MS <= pair[0], "{told:?}");
    }
}

#[tokio::test]
async fn third_parties_are_told_nothing() {
    let server = Server::start(|_| answer("200 OK", "", "")).await;
    let builder = builder().propagation(Propagation::none());
    let client = builder.build().unwrap();
    client.get(server.url()).send().await.unwrap();
    assert!(!server.seen()[0].headers.contains_key(headers::DEADLINE));
}

#[tokio::test(start_paused = true)]
async fn without_a_breaker_or_a_bulkhead_the_body_is_under_the_deadline_still() {
    let fake = Fake::new(|_| fake::slow(200, Duration::from_secs(60)));
    let bare = builder()
        .without_breaker()
        .without_bulkhead()
        .without_retry();
    let client = fake.client(bare);
    assert!(client.breakers().is_none() && client.bulkheads().is_none());
    let response = client.get("http://a.test/").send().await.unwrap();
    let error = response.text().await.unwrap_err();
    assert!(rejected_in(&error).is_some());
}
