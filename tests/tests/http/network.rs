//! A network that changes while the client works: it notices, it keeps away, it comes back.

use std::time::Duration;

use resilience_core::{Error, Pattern, breaker::State};
use resilience_tests::{
    fault_server::{Behaviour, FaultServer},
    proxy::{Proxy, Weather},
};
use tokio::time::{Instant, sleep};

use crate::rig::{DEADLINE, OPEN_FOR, Rig, SLACK, TRIPS, rigs, timed};

#[tokio::test]
async fn an_outage_of_any_kind_opens_the_breaker_and_its_end_closes_it() {
    let storms = [
        Weather::Refuse,
        Weather::Reset,
        Weather::Blackhole,
        Weather::CutAfter(20),
    ];
    for storm in storms {
        let server = FaultServer::start(Behaviour::ok()).await;
        let mut proxy = Proxy::to(server.address()).await.unwrap();
        let url = format!("http://{}/", proxy.address());
        for rig in rigs(proxy.address()) {
            proxy.set(Weather::Fine).await;
            assert_eq!(
                answer(&rig, &url).await.unwrap(),
                "fine",
                "{} before {storm:?}",
                rig.kind
            );

            proxy.set(storm).await;
            let calls: Vec<_> = (0..2 * TRIPS).map(|_| answer(&rig, &url)).collect();
            let failed = futures_util::future::join_all(calls).await;
            assert!(
                failed.iter().all(Result::is_err),
                "{} in {storm:?}: {failed:?}",
                rig.kind
            );
            let (took, sent) = is_turned_away(&rig, &url, || server.connections()).await;
            assert_eq!(
                sent, 0,
                "{} in {storm:?}: a rejected call reached the wire",
                rig.kind
            );
            assert!(took < DEADLINE, "{} in {storm:?}: {took:?}", rig.kind);

            proxy.set(Weather::Fine).await;
            comes_back(&rig, &url).await;
            assert_eq!(
                rig.breaker().state,
                State::Closed,
                "{} after {storm:?}",
                rig.kind
            );
            assert_eq!(rig.in_flight(), 0, "{} after {storm:?}", rig.kind);
        }
    }
}

#[tokio::test]
async fn latency_within_the_deadline_is_no_failure_and_beyond_it_is() {
    let server = FaultServer::start(Behaviour::ok()).await;
    let mut proxy = Proxy::to(server.address()).await.unwrap();
    let url = format!("http://{}/", proxy.address());
    for rig in rigs(proxy.address()) {
        proxy.set(Weather::Latency(Duration::from_millis(20))).await;
        assert_eq!(answer(&rig, &url).await.unwrap(), "fine", "{}", rig.kind);
        rig.settles((1, 0, 0)).await;
        proxy.set(Weather::Latency(DEADLINE)).await;
        let (took, result) = timed(answer(&rig, &url)).await;
        assert!(
            matches!(result, Err(Failure::Rejected(Pattern::Deadline))),
            "{}: {result:?}",
            rig.kind
        );
        assert!(took < DEADLINE + SLACK, "{}: {took:?}", rig.kind);
        rig.settles((1, 1, 0)).await;
    }
}

/// One host that is down is no reason to keep away from another.
#[tokio::test]
async fn each_host_has_a_breaker_of_its_own() {
    let (down, up) = (
        FaultServer::start(Behaviour::ResetOnAccept).await,
        FaultServer::start(Behaviour::ok()).await,
    );
    for rig in rigs(down.address()) {
        is_turned_away(&rig, &down.url("/"), || down.connections()).await;
        for _ in 0..20 {
            assert_eq!(
                answer(&rig, &up.url("/")).await.unwrap(),
                "fine",
                "{}",
                rig.kind
            );
        }
    }
}

#[derive(Debug)]
#[allow(dead_code, reason = "shown when an assertion fails")]
enum Failure {
    Rejected(Pattern),
    Http(reqwest::Error),
}

/// The whole answer.
async fn answer(rig: &Rig, url: &str) -> Result<String, Failure> {
    let response = rig.get(url).await.map_err(|error| match error {
        Error::Rejected(rejected) => Failure::Rejected(rejected.pattern()),
        Error::Service(error) => Failure::Http(error),
    })?;
    response.text().await.map_err(Failure::Http)
}

/// Calls until the breaker says no, and how that call went: how long it took, and what it added to `connections`.
async fn is_turned_away(rig: &Rig, url: &str, connections: impl Fn() -> u64) -> (Duration, u64) {
    let start = Instant::now();
    loop {
        let before = connections();
        let (took, result) = timed(answer(rig, url)).await;
        match result {
            Err(Failure::Rejected(Pattern::CircuitBreaker)) => {
                return (took, connections() - before);
            }
            Err(_) => assert!(start.elapsed() < SLACK, "{}: {:?}", rig.kind, rig.breaker()),
            Ok(answer) => panic!("{}: {answer} in an outage", rig.kind),
        }
    }
}

async fn comes_back(rig: &Rig, url: &str) {
    let start = Instant::now();
    while answer(rig, url).await.is_err() {
        assert!(
            start.elapsed() < SLACK + OPEN_FOR,
            "{}: {:?}",
            rig.kind,
            rig.breaker()
        );
        sleep(OPEN_FOR / 10).await;
    }
}
