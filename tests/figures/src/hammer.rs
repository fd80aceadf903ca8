//! Eight processes that hammer one subject for ten seconds, while processes are killed and connections are cut: what
//! they were allowed in all.
//!
//! Each process writes how much it was allowed into a file of its own after every call, so that a killed one's count
//! stays: short by the calls it was about to write down, at most.

use std::{
    cell::Cell,
    env, fs,
    io::Write as _,
    os::unix::fs::FileExt,
    path::Path,
    process::Stdio,
    rc::Rc,
    time::{Duration, Instant},
};

use resilience_core::{
    fleet::{FleetOptions, OnOutage},
    limit::{
        Quota,
        fleet::{FleetRateLimit, LeaseRules, Mode},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::LocalSet,
};

use crate::{
    fleet::{connect, ms},
    redis::RedisServer,
    report::{Target, figure},
};

/// The argument that makes this program one of the processes.
pub(crate) const ONE: &str = "--hammer";

const PROCESSES: usize = 8;
const TASKS: usize = 8;
const LASTING: Duration = ms(10_000);
const RATE: u64 = 10_000;
/// What is gained in a quarter of a second: less than an outage of all takes away is not lost.
const BURST: u64 = 2_500;

pub(crate) async fn run() {
    for (mode, least) in [("exact", Target::Open), ("leased", Target::AtLeast(95.0))] {
        let (admitted, allowed, faults) = scene(mode).await;
        let unit = format!("calls; {allowed:.0} were allowed; {faults}");
        figure(
            &format!("hammer_{mode}_admitted"),
            admitted,
            &unit,
            Target::AtMost(allowed),
        );
        figure(
            &format!("hammer_{mode}_admitted_percent"),
            admitted / allowed * 100.0,
            "% of what was allowed",
            least,
        );
    }
}

async fn scene(mode: &str) -> (f64, f64, String) {
    let server = RedisServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let mut processes = Vec::new();
    let mut started = 0;
    for _ in 0..PROCESSES {
        processes.push(start(&server, mode, folder.path(), &mut started).await);
    }
    let begin = Instant::now();
    for process in &mut processes {
        go(process).await;
    }
    let (mut killed, mut cut, mut next) = (0, 0, 0);
    while begin.elapsed() < LASTING {
        tokio::time::sleep(ms(700)).await;
        // Its successor takes a moment to connect, and the bucket gains on.
        processes[next].kill().await.expect("kill -9");
        killed += 1;
        processes[next] = start(&server, mode, folder.path(), &mut started).await;
        go(&mut processes[next]).await;
        next = (next + 1) % PROCESSES;
        if killed % 3 == 0 {
            let _ = server.command("CLIENT KILL TYPE normal SKIPME yes");
            cut += 1;
        }
    }
    for process in &mut processes {
        process.kill().await.expect("kill -9");
    }
    let allowed = (RATE as f64).mul_add(begin.elapsed().as_secs_f64(), BURST as f64);
    let mut admitted = 0;
    for number in 0..started {
        let bytes = fs::read(folder.path().join(number.to_string())).expect("its count");
        admitted += u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    }
    let faults = format!("{killed} processes killed, all connections cut {cut} times");
    (admitted as f64, allowed, faults)
}

/// Starts a process, and waits until it is connected.
async fn start(server: &RedisServer, mode: &str, folder: &Path, started: &mut u32) -> Child {
    let file = folder.join(started.to_string());
    *started += 1;
    let mut process = Command::new(env::current_exe().expect("this program"))
        .args([ONE, &server.url(), mode])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a process");
    let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
    let line = lines.next_line().await.expect("readable").expect("a line");
    assert_eq!(line, "ready");
    process
}

async fn go(process: &mut Child) {
    let input = process.stdin.as_mut().expect("its input");
    input.write_all(b"go\n").await.expect("it listens");
}

/// One of the processes: asks as often as it can, until it is killed. What it is refused it asks for again when it was
/// told to.
pub(crate) async fn one(url: &str, mode: &str, file: &str) {
    let mode = match mode {
        "leased" => Mode::Leased(LeaseRules::new()),
        _ => Mode::Exact,
    };
    let quota = Quota::per(RATE, ms(1_000)).and_then(|quota| quota.burst(BURST));
    let limit = FleetRateLimit::builder("hammer")
        .store(connect(url).await.limits())
        .limit("calls", quota.expect("a good quota"))
        .mode(mode)
        .fleet(
            FleetOptions::new()
                .on_outage(OnOutage::FailClosed)
                .budget(ms(1_000)),
        )
        .build()
        .expect("a good limit");
    let file = fs::File::create(file).expect("a file");
    file.write_all_at(&0_u64.to_le_bytes(), 0).expect("written");
    println!("ready");
    std::io::stdout().flush().expect("flushed");
    let mut line = String::new();
    let mut input = BufReader::new(tokio::io::stdin());
    input.read_line(&mut line).await.expect("go");
    let (file, admitted) = (Rc::new(file), Rc::new(Cell::new(0_u64)));
    let all = LocalSet::new();
    for _ in 0..TASKS {
        let (limit, file, admitted) = (limit.clone(), Rc::clone(&file), Rc::clone(&admitted));
        all.spawn_local(async move {
            loop {
                let ruling = limit.ask("subject", 1).await;
                if ruling.is_admitted() {
                    admitted.set(admitted.get() + 1);
                    let count = admitted.get().to_le_bytes();
                    file.write_all_at(&count, 0).expect("written");
                } else {
                    let wait = ruling.retry_after().unwrap_or(ms(5));
                    tokio::time::sleep(wait).await;
                }
            }
        });
    }
    all.await;
}
