//! One instance of a shared breaker in a process of its own, told what to do on its input, a line each; every line is
//! answered by one.
//!
//! `instance URL NAME OPEN_MS LEASE_MS`, then
//!
//! - `state`: the breaker's state
//! - `view`: epoch, live and failing instances, calls counted, probes out; `?` when the store does not say
//! - `settle N ok|bad`: N calls, one after the other; prints how many were let through
//! - `burst N`: N calls at once, each of which succeeds after 100 ms; prints how many were let through
//! - `hold`: one call that never ends; `held` or `rejected`

use std::{env, time::Duration};

use futures_util::future::join_all;
use resilience_core::{Verdict, error::Error};
use resilience_tests::redis_scene::{Instance, builder, rules};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::mpsc,
};
use tower::{Layer, ServiceExt};

#[tokio::main]
async fn main() {
    let mut args = env::args().skip(1);
    let mut next = || args.next().expect("URL NAME OPEN_MS LEASE_MS");
    let (url, name) = (next(), next());
    let mut ms = || Duration::from_millis(next().parse().expect("milliseconds"));
    let builder = builder(&name, ms()).fleet_rules(rules().probe_lease(ms()));
    let instance = Instance::start(&url, builder).await;
    println!("ready");
    let mut lines = BufReader::new(stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("{}", answer(&instance, &words).await);
    }
}

async fn answer(instance: &Instance, words: &[&str]) -> String {
    match *words {
        ["state"] => instance.breaker.state().as_str().to_owned(),
        ["view"] => match instance.view().await {
            Some(view) => format!(
                "{} {} {} {} {}",
                view.epoch,
                view.live,
                view.failing,
                view.window.total(),
                view.leased
            ),
            None => "?".to_owned(),
        },
        ["settle", calls, how] => {
            let verdict = match how {
                "ok" => Verdict::Success,
                _ => Verdict::transient(),
            };
            let mut passed = 0;
            for _ in 0..calls.parse().unwrap_or(0) {
                passed += usize::from(instance.call(verdict).await);
            }
            passed.to_string()
        }
        ["burst", calls] => {
            let service = instance
                .breaker
                .layer()
                .layer(tower::service_fn(|()| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok::<_, Error<()>>(())
                }));
            let calls = (0..calls.parse().unwrap_or(0)).map(|_| service.clone().oneshot(()));
            let results = join_all(calls).await;
            results
                .iter()
                .filter(|result| result.is_ok())
                .count()
                .to_string()
        }
        ["hold"] => {
            let (tell, mut told) = mpsc::channel(1);
            let service = instance.breaker.layer().layer(tower::service_fn(move |()| {
                let tell = tell.clone();
                async move {
                    let _ = tell.send(()).await;
                    std::future::pending::<Result<(), Error<()>>>().await
                }
            }));
            let call = tokio::spawn(service.oneshot(()));
            tokio::select! {
                Some(()) = told.recv() => "held".to_owned(),
                _ = call => "rejected".to_owned(),
            }
        }
        _ => format!("? {words:?}"),
    }
}
