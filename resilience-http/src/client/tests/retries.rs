//! Which requests are sent again, and when.

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
        let reasons = GaveUp::ALL.map(|why| (why, given_up.snapshot().given_up.of(why)));
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
    // One permit: the second attempt would wait forever for that of the first.
    let one = Bulkhead::builder("pay").max_concurrent(1);
    let client = fake.client(builder().bulkhead(one.keyed(Keyed::new()).unwrap()));
    let response = client.get("http://a.test/").send().await.unwrap();
    assert_eq!(response.status(), 200);
}
