//! One instance of a fleet's bulkhead in a process of its own, told what to do on its input, a line each; every line is
//! answered by one.
//!
//! `holder URL NAME LIMIT LEASE_MS DEPENDENCY`, then
//!
//! - `hold`: takes a place and keeps it; its fence, or why not
//! - `lost`: how many of the places that it keeps are lost
//! - `drop`: gives them all back
//! - `degraded`: 1 if the store cannot be reached
//! - `run MS TASKS`: TASKS tasks call the dependency, one call after the other, for MS milliseconds; prints how many calls it answered

use std::{env, time::Duration};

use futures_util::future::join_all;
use resilience_core::bulkhead::fleet::{FleetBulkhead, FleetPermit};
use resilience_tests::redis_scene::{SOON, connect};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin},
    net::TcpStream,
    time::Instant,
};

#[tokio::main]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [url, name, limit, lease, dependency] = &args[..] else {
        panic!("URL NAME LIMIT LEASE_MS DEPENDENCY");
    };
    let bulkhead = FleetBulkhead::builder(name.as_str())
        .store(connect(url).await.bulkheads())
        .max_concurrent(limit.parse().expect("a number"))
        .lease(Duration::from_millis(lease.parse().expect("milliseconds")))
        .queue(1_000, SOON)
        .build()
        .expect("good settings");
    println!("ready");
    let mut held = Vec::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("{}", answer(&bulkhead, &mut held, dependency, &words).await);
    }
}

async fn answer(
    bulkhead: &FleetBulkhead,
    held: &mut Vec<FleetPermit>,
    dependency: &str,
    words: &[&str],
) -> String {
    match *words {
        ["hold"] => match bulkhead.acquire(1).await {
            Ok(permit) => {
                let fence = permit.fence().unwrap_or_default();
                held.push(permit);
                fence.to_string()
            }
            Err(rejected) => rejected.reason().as_str().to_owned(),
        },
        ["lost"] => {
            let lost = held.iter().filter(|permit| permit.is_lost());
            lost.count().to_string()
        }
        ["drop"] => {
            held.clear();
            "dropped".to_owned()
        }
        ["degraded"] => u8::from(bulkhead.snapshot().degraded).to_string(),
        ["run", ms, tasks] => {
            let ms = ms.parse().expect("milliseconds");
            let until = Instant::now() + Duration::from_millis(ms);
            let tasks = (0..tasks.parse().expect("a number"))
                .map(|_: usize| call_until(bulkhead, dependency, until));
            join_all(tasks).await.iter().sum::<u64>().to_string()
        }
        _ => format!("? {words:?}"),
    }
}

/// The dependency sends one byte when it has done its work.
async fn call_until(bulkhead: &FleetBulkhead, dependency: &str, until: Instant) -> u64 {
    let mut answered = 0;
    while Instant::now() < until {
        let Ok(_permit) = bulkhead.acquire(1).await else {
            continue;
        };
        if let Ok(mut stream) = TcpStream::connect(dependency).await {
            answered += u64::from(stream.read_u8().await.is_ok());
        }
    }
    answered
}
