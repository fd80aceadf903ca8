//! Real servers on loopback, in real time (a paused clock runs ahead of the network), and a transport without a
//! network under the paused clock, where times are exact.

mod fake;
mod server;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use resilience_core::{
    Pattern, Reason, Rejected, Verdict,
    breaker::{CircuitBreaker, State},
    bulkhead::Bulkhead,
    deadline::{self, Deadline},
    keyed::Keyed,
    retry::{Backoff, GaveUp},
};
use tokio::time::Instant;

use self::{
    fake::Fake,
    server::{Server, Step, answer, head, write},
};
use super::*;
use crate::{BodyEnd, body::rejected_in, headers};

const MS: Duration = Duration::from_millis(1);

/// Quick to retry, slow to give up.
fn builder() -> ClientBuilder {
    let backoff = Backoff::fixed(MS);
    let retry = Retry::builder("pay").backoff(backoff).build().unwrap();
    Client::builder("pay").retry(retry)
}

fn client() -> Client {
    builder().build().unwrap()
}

fn breakers(failures: u32) -> KeyedCircuitBreaker<Host> {
    let builder = CircuitBreaker::builder("pay").consecutive_failures(failures);
    builder.keyed(Keyed::new()).unwrap()
}

/// Fails the first request, answers all others.
async fn fails_once() -> Server {
    Server::start(|n| match n {
        1 => answer("503 Service Unavailable", "", ""),
        _ => answer("200 OK", "", "paid"),
    })
    .await
}

fn host(server: &Server) -> Host {
    Host::of(&server.url().parse().unwrap())
}

fn rejected(result: Result<Response, Error<reqwest::Error>>) -> Rejected {
    match result {
        Err(Error::Rejected(rejected)) => rejected,
        other => panic!("{other:?}"),
    }
}

mod retries {
    use super::*;

    #[tokio::test]
    async fn a_get_that_failed_is_sent_again() {
        let server = fails_once().await;
        let response = client().get(server.url()).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), "paid");
        assert_eq!(server.requests(), 2);
    }

    #[tokio::test]
    async fn a_post_that_failed_is_not_sent_again() {
        let server = fails_once().await;
        let response = client().post(server.url()).body("1").send().await.unwrap();
        assert_eq!(
            response.status(),
            503,
            "the last answer is what the caller gets"
        );
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_post_with_an_idempotency_key_is_sent_again_with_the_same_key_and_body() {
        let server = fails_once().await;
        let request = client().post(server.url()).json(&[1, 2]);
        let response = request.idempotency_key("k-7").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let seen = server.seen();
        assert_eq!(seen.len(), 2);
        for request in seen {
            assert_eq!(request.line, "POST /pay?n=1 HTTP/1.1");
            assert_eq!(request.headers[headers::IDEMPOTENCY_KEY], "k-7");
            assert_eq!(request.body, b"[1,2]");
        }
    }

    #[tokio::test]
    async fn what_the_caller_says_of_one_request_counts_more_than_its_method() {
        let server = fails_once().await;
        let search = client().post(server.url()).idempotent(true);
        assert_eq!(search.send().await.unwrap().status(), 200);
        let server = fails_once().await;
        let odd = client().get(server.url()).idempotent(false);
        assert_eq!(odd.send().await.unwrap().status(), 503);
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_not_sent_again() {
        let small_bodies = || {
            builder()
                .replay(HttpReplay::new().max_body(4))
                .build()
                .unwrap()
        };
        let server = fails_once().await;
        let put = small_bodies().put(server.url()).body("12345").send().await;
        assert_eq!(
            (put.unwrap().status().as_u16(), server.requests()),
            (503, 1)
        );
        let server = fails_once().await;
        let put = small_bodies().put(server.url()).body("1234").send().await;
        assert_eq!(
            (put.unwrap().status().as_u16(), server.requests()),
            (200, 2)
        );
    }

    #[tokio::test]
    async fn a_streaming_body_is_not_sent_again() {
        let server = fails_once().await;
        let body = reqwest::Body::wrap(Full::new(Bytes::from("1")));
        let put = client().put(server.url()).body(body).send().await.unwrap();
        assert_eq!((put.status().as_u16(), server.requests()), (503, 1));
    }

    #[tokio::test]
    async fn a_connection_that_is_reset_is_tried_again() {
        let server = Server::start(|n| match n {
            1 => vec![Step::Reset],
            2 => vec![Step::Close],
            _ => answer("200 OK", "", "paid"),
        })
        .await;
        let response = client().get(server.url()).send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.requests()), (200, 3));
    }

    #[tokio::test]
    async fn what_is_the_callers_fault_is_not_sent_again() {
        let server = Server::start(|_| answer("404 Not Found", "", "")).await;
        let response = client().get(server.url()).send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.requests()), (404, 1));
    }

    #[tokio::test]
    async fn a_retry_after_beyond_all_patience_ends_the_retries_in_both_forms() {
        let far = "Fri, 31 Dec 9999 23:59:59 GMT";
        for value in ["3600", far] {
            let header = format!("retry-after: {value}\r\n");
            let server = Server::start(move |_| answer("503 No", &header, "")).await;
            let client = client();
            let response = client.get(server.url()).send().await.unwrap();
            assert_eq!((response.status().as_u16(), server.requests()), (503, 1));
            let given_up = client.retry().unwrap();
            let reasons = GaveUp::ALL.map(|why| (why, given_up.given_up(why)));
            assert_eq!(
                reasons.iter().map(|(_, calls)| calls).sum::<u64>(),
                1,
                "{reasons:?}"
            );
        }
    }

    /// The exact waits, under the paused clock.
    #[tokio::test(start_paused = true)]
    async fn a_retry_after_is_honoured_in_both_forms() {
        let date = [
            ("date", "Sun, 06 Nov 1994 08:49:30 GMT"),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        for headers in [vec![("retry-after", "7")], date.to_vec()] {
            let fake = Fake::new(move |n| match n {
                1 => fake::answer(429, &headers, "later"),
                _ => fake::answer(200, &[], "now"),
            });
            let client = fake.client(builder().deadline(Duration::from_secs(60)));
            let start = Instant::now();
            let response = client.get("http://a.test/").send().await.unwrap();
            assert_eq!(response.status(), 200);
            let waited = start.elapsed();
            assert!(waited >= Duration::from_secs(7), "{waited:?}");
            assert!(waited < Duration::from_secs(8), "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_failed_answer_is_let_go_before_the_wait() {
        let fake = Fake::new(|n| match n {
            1 => fake::answer(503, &[], "a body that holds a place"),
            _ => fake::answer(200, &[], ""),
        });
        // One place: the second attempt would wait for the first one's for ever.
        let one = Bulkhead::builder("pay").max_concurrent(1);
        let client = fake.client(builder().bulkhead(one.keyed(Keyed::new()).unwrap()));
        let response = client.get("http://a.test/").send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

mod breaking {
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
        // A port that was free a moment ago, and that nobody listens on.
        let url = Server::start(|_| Vec::new()).await.url();
        let client = builder().breaker(breakers(3)).build().unwrap();
        let error = loop {
            match client.get(&url).send().await {
                Err(Error::Service(error)) if error.is_connect() => break error,
                // The server's task may take a moment to go.
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
        let before = client.retry().unwrap().retries();
        rejected(client.get(down.url()).send().await);
        assert_eq!(client.retry().unwrap().retries(), before);
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
}

mod deadlines {
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
}

mod places {
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
}

mod feel {
    use super::*;

    #[tokio::test]
    async fn the_answer_is_reqwests_own_with_all_that_belongs_to_it() {
        let header = "x-one: 1\r\ncontent-type: application/json\r\n";
        let server = Server::start(move |_| answer("201 Created", header, "[1,2]")).await;
        let response = client().get(server.url()).send().await.unwrap();
        let plain = reqwest::get(server.url()).await.unwrap();
        assert_eq!(response.url(), plain.url());
        assert_eq!(response.status(), plain.status());
        assert_eq!(response.version(), plain.version());
        assert_eq!(response.headers(), plain.headers());
        assert_eq!(response.content_length(), Some(5));
        assert_eq!(response.content_length(), plain.content_length());
        assert_eq!(response.remote_addr(), plain.remote_addr());
        assert!(response.remote_addr().is_some());
        assert_eq!(response.json::<Vec<u8>>().await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn after_a_redirect_the_url_is_the_last_one() {
        let server = Server::start(|n| match n {
            1 => answer("302 Found", "location: /moved\r\n", ""),
            _ => answer("200 OK", "", "here"),
        })
        .await;
        let response = client().get(server.url()).send().await.unwrap();
        assert_eq!(response.url().path(), "/moved");
    }

    #[tokio::test]
    async fn a_request_is_built_by_reqwests_names() {
        let server = Server::start(|_| answer("200 OK", "", "")).await;
        let request = client().put(server.url());
        let request = request.query(&[("m", "2")]).header("x-two", "2");
        let request = request.bearer_auth("secret").json(&"hi");
        let mut more = http::HeaderMap::new();
        more.insert("x-three", "3".parse().unwrap());
        let request = request.headers(more).version(http::Version::HTTP_11);
        let again = request.try_clone().unwrap();
        request.send().await.unwrap();
        again
            .with(|request| request.header("x-four", "4"))
            .send()
            .await
            .unwrap();
        let seen = server.seen();
        assert_eq!(seen[0].line, "PUT /pay?n=1&m=2 HTTP/1.1");
        assert_eq!(seen[0].body, b"\"hi\"");
        assert_eq!(seen[0].headers["content-type"], "application/json");
        assert_eq!(seen[0].headers["authorization"], "Bearer secret");
        assert_eq!(
            (&seen[0].headers["x-two"], &seen[0].headers["x-three"]),
            (&"2".parse().unwrap(), &"3".parse().unwrap())
        );
        assert_eq!(seen[1].headers["x-four"], "4");
    }

    #[tokio::test]
    async fn a_bad_url_is_reqwests_error_and_nobodys_failure() {
        let client = builder().breaker(breakers(1)).build().unwrap();
        for url in ["not a url", "/relative", "ftp://a.test/x", "http://"] {
            let plain = reqwest::Client::new().get(url).send().await.unwrap_err();
            let Err(Error::Service(error)) = client.get(url).send().await else {
                panic!("{url}");
            };
            assert!(error.is_builder(), "{url}");
            assert_eq!(error.to_string(), plain.to_string());
        }
        assert_eq!(client.retry().unwrap().retries(), 0);
        let snapshots = client.breakers().unwrap().snapshots();
        assert!(snapshots.iter().all(|breaker| breaker.totals.failures == 0));
    }

    #[tokio::test]
    async fn a_request_body_that_fails_is_nobodys_failure() {
        let server = Server::start(|_| answer("200 OK", "", "")).await;
        let client = builder().breaker(breakers(1)).build().unwrap();
        let pieces = [Ok("1"), Err(std::io::Error::other("the caller's disk"))];
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let result = client.put(server.url()).body(body).send().await;
        assert!(matches!(result, Err(Error::Service(_))), "{result:?}");
        let breaker = client.breakers().unwrap().get(&host(&server));
        assert_eq!(
            (breaker.state(), breaker.snapshot().totals.failures),
            (State::Closed, 0)
        );
    }

    #[tokio::test]
    async fn a_stack_of_ones_own_makes_a_client() {
        let server = fails_once().await;
        let http = reqwest_builder().build().unwrap();
        let retry = Retry::builder("own")
            .backoff(Backoff::fixed(MS))
            .build()
            .unwrap();
        let bulkhead = Bulkhead::builder("own").max_concurrent(1).build().unwrap();
        let stack = tower::ServiceBuilder::new()
            .layer(bulkhead.layer().until(BodyEnd::new("own")))
            .layer(
                retry
                    .layer()
                    .classify(crate::HttpVerdicts::new())
                    .replay(HttpReplay::new()),
            )
            .service(ReqwestService::new(http.clone()));
        let client = Client::from_service(http, stack);
        let response = client.get(server.url()).send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.requests()), (200, 2));
        assert_eq!(bulkhead.snapshot().in_flight, 1);
        response.bytes().await.unwrap();
        assert_eq!(bulkhead.snapshot().in_flight, 0);
        assert!(client.retry().is_none());
    }

    #[tokio::test]
    async fn a_client_is_a_service_and_its_calls_can_be_spawned() {
        let server = Server::start(|_| answer("200 OK", "", "")).await;
        let request = Request::new(Method::GET, server.url().parse().unwrap());
        let call = tower::ServiceExt::oneshot(client(), request);
        assert_eq!(tokio::spawn(call).await.unwrap().unwrap().status(), 200);
    }

    #[test]
    fn a_value_that_cannot_work_is_named() {
        let error = Client::builder("pay").deadline(Duration::ZERO).build();
        assert_eq!(error.unwrap_err().field(), "after");
        let error = Client::builder("pay")
            .attempt_timeout(Duration::ZERO)
            .build();
        assert!(error.is_err());
    }
}
