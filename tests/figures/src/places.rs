//! What a fleet has in flight: several processes that crowd for the places of one dependency.

use std::{
    env,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};

use resilience_core::bulkhead::fleet::FleetBulkhead;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::{
    fleet::{connect, ms},
    redis::RedisServer,
    report::{Target, figure},
};

/// The argument that makes this program one of the crowd.
pub(crate) const CROWD: &str = "crowd-for-places";
const PLACES: usize = 8;
const PROCESSES: usize = 4;
const TASKS: usize = 16;
const TIME: std::time::Duration = ms(5_000);
/// What a call takes at the dependency.
const WORK: std::time::Duration = ms(2);

pub(crate) async fn run() {
    let server = RedisServer::start();
    let (now, most, served) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address").to_string();
    let counts = (now, Arc::clone(&most), Arc::clone(&served));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, counts.clone()));
        }
    });
    let crowd = (0..PROCESSES).map(|_| {
        Command::new(env::current_exe().expect("this program"))
            .args([CROWD, &server.url(), &addr])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a process")
    });
    for mut process in crowd.collect::<Vec<_>>() {
        let status = process.wait().await.expect("it ends");
        assert!(status.success(), "{status}");
    }
    let most = most.load(SeqCst) as f64;
    figure(
        "most_calls_in_flight_of_4_processes_with_8_places",
        most,
        "calls",
        Target::AtMost(PLACES as f64),
    );
    figure(
        "calls_of_2_ms_by_4_processes_with_8_places",
        served.load(SeqCst) as f64 / TIME.as_secs_f64(),
        "calls/s",
        Target::Open,
    );
}

/// Counted until just before the answer: the caller gives its place back when it has it.
async fn serve(mut stream: TcpStream, counts: (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)) {
    let (now, most, served) = counts;
    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
    tokio::time::sleep(WORK).await;
    now.fetch_sub(1, SeqCst);
    served.fetch_add(1, SeqCst);
    // A caller that is gone needs no answer.
    let _ = stream.write_u8(0).await;
}

/// Calls the dependency for a while, with as many tasks as want to.
pub(crate) async fn crowd(url: &str, addr: &str) {
    let bulkhead = FleetBulkhead::builder("places")
        .store(connect(url).await.bulkheads())
        .max_concurrent(PLACES)
        .queue(TASKS, TIME)
        .build()
        .expect("good settings");
    let until = Instant::now() + TIME;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (bulkhead, addr) = (bulkhead.clone(), addr.to_owned());
            tokio::spawn(async move {
                while Instant::now() < until {
                    let Ok(_permit) = bulkhead.acquire(1).await else {
                        continue;
                    };
                    if let Ok(mut stream) = TcpStream::connect(&addr).await {
                        let _ = stream.read_u8().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}
