//! Programs that talk to each other: the deadline travels, and rejections arrive as answers.

use std::{net::Ipv4Addr, time::Duration};

use axum::{Router, extract::State, response::IntoResponse, routing::get};
use reqwest::{Response, StatusCode};
use resilience_core::{
    Error,
    breaker::{CircuitBreaker, Override},
    bulkhead::Bulkhead,
    deadline,
    keyed::Keyed,
};
use resilience_http::{
    Client,
    client::Host,
    problem::Problem,
    server::{self, InboundDeadline},
};
use resilience_tests::fault_server::{Behaviour, FaultServer};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::rig::{SLACK, eventually, timed};

/// A program that serves; dropping it ends it.
struct Program {
    url: String,
    task: JoinHandle<()>,
}

impl Program {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inbound = InboundDeadline::new("inbound", Duration::from_secs(20)).unwrap();
        let app = app.layer(inbound.layer());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, task }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the handler may still take, in milliseconds.
fn left() -> u128 {
    deadline::current()
        .expect("a deadline")
        .remaining()
        .as_millis()
}

/// The far end: says what is left to it.
async fn far() -> Program {
    Program::start(Router::new().route("/", get(async || left().to_string()))).await
}

#[derive(Clone)]
struct Next {
    client: Client,
    url: String,
}

/// Says what is left to it, and what the next program says, asked through a guarded client. What the next program could
/// not do is passed on as it is.
async fn near(next: &str) -> Program {
    let state = Next {
        client: Client::new("next").unwrap(),
        url: next.to_owned(),
    };
    let handler = async |State(next): State<Next>| -> Result<axum::response::Response, Problem> {
        let here = left();
        let response = next
            .client
            .get(&next.url)
            .send()
            .await
            .map_err(|error| match error {
                Error::Rejected(rejected) => Problem::from(rejected),
                Error::Service(_) => Problem::new(
                    StatusCode::BAD_GATEWAY,
                    "The next program cannot be reached",
                ),
            })?;
        let (status, kind) = (
            response.status(),
            response.headers().get("content-type").cloned(),
        );
        let there = response
            .text()
            .await
            .map_err(|_| Problem::new(StatusCode::BAD_GATEWAY, "It broke off"))?;
        Ok(if status.is_success() {
            format!("{here} {there}").into_response()
        } else {
            let kind = kind.expect("a problem says what it is");
            (status, [("content-type", kind)], there).into_response()
        })
    };
    Program::start(Router::new().route("/", get(handler)).with_state(state)).await
}

async fn ask(url: &str, timeout_ms: Option<&str>) -> Response {
    let mut request = reqwest::Client::new().get(url);
    if let Some(timeout) = timeout_ms {
        request = request.header("request-timeout-ms", timeout);
    }
    request.send().await.unwrap()
}

/// Two hops, each a program of its own, none of which says a word about deadlines in its handler.
#[tokio::test]
async fn the_deadline_of_the_first_caller_shrinks_from_hop_to_hop() {
    let last = far().await;
    let middle = near(&last.url).await;
    let first = near(&middle.url).await;
    let answer = ask(&first.url, Some("9000")).await.text().await.unwrap();
    let left: Vec<u128> = answer
        .split(' ')
        .map(|left| left.parse().unwrap())
        .collect();
    assert_eq!(left.len(), 3, "{answer}");
    assert!(left[0] <= 9000 && left[0] > 0, "{left:?}");
    assert!(
        left.is_sorted_by(|before, after| before >= after),
        "{left:?} grows on the way"
    );
}

/// Without a deadline of the caller's, the server's own maximum is what travels; the client's 10 s cut it down.
#[tokio::test]
async fn the_servers_own_maximum_travels_when_the_caller_says_nothing() {
    let last = far().await;
    let first = near(&last.url).await;
    let answer = ask(&first.url, None).await.text().await.unwrap();
    let (here, there) = answer.split_once(' ').unwrap();
    assert!(here.parse::<u128>().unwrap() > 10_000, "{answer}");
    assert!(there.parse::<u128>().unwrap() <= 10_000, "{answer}");
}

#[tokio::test]
async fn a_request_without_time_left_is_answered_504_and_the_handler_is_not_run() {
    let last = far().await;
    let response = ask(&last.url, Some("0")).await;
    is_problem(response, 504, "deadline", "no_time_left", None).await;
}

/// The far server hangs. Every hop stops waiting when the first caller does, or little later. (Who of them
/// is first to say so, by a fraction of a millisecond, is open.)
#[tokio::test]
async fn a_hang_far_away_is_answered_504_by_the_deadline_of_the_first_caller() {
    let hung = FaultServer::start(Behaviour::HangBeforeHeaders).await;
    let middle = near(&hung.url("/")).await;
    let first = near(&middle.url).await;
    let (took, response) = timed(ask(&first.url, Some("300"))).await;
    assert!(
        took >= Duration::from_millis(297) && took < SLACK,
        "{took:?}"
    );
    is_problem(response, 504, "deadline", "timed_out", None).await;
    assert!(
        eventually(|| hung.open() == 0).await,
        "the far server is still being waited for"
    );
    assert_eq!(hung.requests(), 1, "there was no time for another attempt");
}

#[tokio::test]
async fn an_open_breaker_behind_a_handler_is_answered_503_with_retry_after() {
    let last = FaultServer::start(Behaviour::ok()).await;
    let breakers = CircuitBreaker::builder("next").keyed(Keyed::new()).unwrap();
    let host = Host::of(&last.url("/").parse().unwrap());
    breakers
        .get(&host)
        .set_override(Override::force_open("maintenance").expires_after(Duration::from_secs(1800)));
    let client = Client::builder("next").breaker(breakers).build().unwrap();
    let url = last.url("/");
    let handler = async move || -> Result<String, Problem> {
        match client.get(&url).send().await {
            Ok(response) => Ok(response.status().to_string()),
            Err(Error::Rejected(rejected)) => Err(rejected.into()),
            Err(Error::Service(error)) => panic!("{error}"),
        }
    };
    let program = Program::start(Router::new().route("/", get(handler))).await;
    let response = ask(&program.url, None).await;
    is_problem(
        response,
        503,
        "circuit_breaker",
        "forced_open",
        Some(1700..=1800),
    )
    .await;
    assert_eq!(last.connections(), 0);
}

#[tokio::test]
async fn a_full_bulkhead_around_a_handler_is_answered_503_with_retry_after() {
    let bulkhead = Bulkhead::builder("handlers")
        .max_concurrent(1)
        .build()
        .unwrap();
    let slow = get(std::future::pending::<String>).layer(server::bulkhead(&bulkhead));
    let program = Program::start(Router::new().route("/", slow)).await;
    let url = program.url.clone();
    let first = tokio::spawn(async move { ask(&url, None).await });
    assert!(eventually(|| bulkhead.snapshot().in_flight == 1).await);
    let response = ask(&program.url, None).await;
    is_problem(response, 503, "bulkhead", "full", Some(1..=30)).await;
    // The first caller hangs up, and its place is free.
    first.abort();
    assert!(
        eventually(|| bulkhead.snapshot().in_flight == 0).await,
        "{:?}",
        bulkhead.snapshot()
    );
}

/// A rejection's document, and its status seen from the other side: no more retries than it is worth.
#[tokio::test]
async fn a_rejection_of_the_next_program_is_a_failure_that_says_when_to_come_back() {
    let bulkhead = Bulkhead::builder("handlers")
        .max_concurrent(1)
        .retry_after(Duration::from_secs(60));
    let bulkhead = bulkhead.build().unwrap();
    let permit = bulkhead.try_acquire().unwrap();
    let route = get(async || "served").layer(server::bulkhead(&bulkhead));
    let next = Program::start(Router::new().route("/", route)).await;
    let client = Client::new("caller").unwrap();
    let (took, response) = timed(client.get(&next.url).send()).await;
    assert_eq!(response.unwrap().status(), 503);
    assert_eq!(
        client.retry().unwrap().snapshot().retries,
        0,
        "a minute does not fit into the ten seconds of a call"
    );
    assert!(took < SLACK, "{took:?}");
    drop(permit);
    assert_eq!(
        client
            .get(&next.url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
        "served"
    );
}

async fn is_problem(
    response: Response,
    status: u16,
    pattern: &str,
    reason: &str,
    retry_after: Option<std::ops::RangeInclusive<u64>>,
) {
    assert_eq!(response.status(), status);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let header = response.headers().get("retry-after");
    let seconds: Option<u64> = header.map(|value| value.to_str().unwrap().parse().unwrap());
    match (&retry_after, seconds) {
        (Some(range), Some(seconds)) => assert!(range.contains(&seconds), "Retry-After: {seconds}"),
        (None, None) => {}
        (expected, seen) => panic!("Retry-After is {seen:?}, expected {expected:?}"),
    }
    let document: serde_json::Value =
        serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(document["status"], status);
    assert_eq!(
        (document["pattern"].as_str(), document["reason"].as_str()),
        (Some(pattern), Some(reason))
    );
    assert_eq!(
        document["type"],
        format!("urn:problem-type:resilience:{pattern}:{reason}")
    );
}
