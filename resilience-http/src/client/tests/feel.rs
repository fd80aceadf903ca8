//! The API is that of reqwest.

use std::sync::LazyLock;

use resilience_core::order::Rule;
use tower::Layer;

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
    assert_eq!(client.retry().unwrap().snapshot().retries, 0);
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
        .layer(bulkhead.layer().complete_on(OnBodyEnd::new()))
        .layer(
            retry
                .layer()
                .classify(crate::HttpClassifier::new())
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
    let call = client().get(server.url()).idempotent(true).send();
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

#[test]
fn a_client_can_be_a_static() {
    static CLIENT: LazyLock<Client> = LazyLock::new(|| Client::new("payments").unwrap());
    assert!(tokio::runtime::Handle::try_current().is_err());
    assert_eq!(CLIENT.breakers().map(|all| all.name()), Some("payments"));
}

/// The order is the documented one, and a retry around the client is seen to be one too many.
#[tokio::test]
async fn the_layers_are_described_also_to_a_layer_around_the_client() {
    let builder = builder()
        .attempt_timeout(MS)
        .idempotency_keys(IdempotencyKeys::new());
    let client = builder.build().unwrap();
    let patterns = |description: &Description| {
        let parts = description.parts().iter();
        parts
            .map(|part| part.pattern().as_str())
            .collect::<Vec<_>>()
    };
    let own = [
        "deadline",
        "idempotency_keys",
        "retry",
        "bulkhead",
        "circuit_breaker",
        "deadline",
    ];
    assert_eq!(patterns(client.describe()), own);
    assert_eq!(client.describe().warnings(), []);

    let retry = Retry::builder("outer").build().unwrap();
    let description = order::describe(&retry.layer().layer(client));
    assert_eq!(patterns(&description)[1..], own);
    let rules = description
        .warnings()
        .into_iter()
        .map(|warning| warning.rule);
    let expected = [
        Rule::DeadlineBelowRetry,
        Rule::KeyBelowRetry,
        Rule::RetryBelowRetry,
    ];
    assert_eq!(rules.collect::<Vec<_>>(), expected);
}
