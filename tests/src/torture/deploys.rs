//! Servers that are replaced under load: each gets a SIGTERM while handlers run whose clients have hung up, and the
//! process that takes its place serves the same keys.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, http::HeaderMap, routing::post};
use resilience_core::idempotency::{Effect, Idempotency};
use resilience_http::server::IdempotentRequests;
use resilience_redis::Redis;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command},
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::redis::RedisServer;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deploys {
    /// Keys of which a client has received an outcome.
    pub answered: usize,
    /// Servers that were replaced.
    pub signals: usize,
    /// Clients that hung up before the response.
    pub hung_up: usize,
    /// Keys that took effect more than once.
    pub twice: usize,
    /// Keys with an outcome that is not that of their first effect.
    pub contradictory: usize,
}

/// How long the key of a handler that died stays with it. Its work is declared idempotent, and so is done again after that: a handler
/// that is lost in a deployment is an effect too many.
const LEASE: Duration = Duration::from_secs(3);
const CLIENTS: usize = 16;
const SERVERS: usize = 2;
const SOON: Duration = Duration::from_secs(30);

/// Has `keys` keys served while the servers are replaced one after the other. `program` is the binary `torture`; the servers drain,
/// or merely end with their last connection.
///
/// # Panics
/// If a server does not start or end, or a key is not answered within half a minute.
pub async fn deploys(program: &Path, keys: usize, drains: bool) -> Deploys {
    let redis = RedisServer::start();
    let bank = Bank::open().await;
    let fleet = Fleet {
        program: program.to_owned(),
        arguments: [
            redis.url(),
            bank.address.to_string(),
            String::from(if drains { "drain" } else { "exit" }),
        ],
    };
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(fleet.start().await);
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let addresses = Arc::new(Mutex::new(addresses));
    let hung_up = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let (addresses, hung_up) = (Arc::clone(&addresses), Arc::clone(&hung_up));
        clients.spawn(async move {
            let mut told = Vec::new();
            for key in (first..keys).step_by(CLIENTS) {
                let outcome = timeout(SOON, until_answered(&addresses, key, &hung_up)).await;
                told.push((
                    key,
                    outcome.unwrap_or_else(|_| panic!("no outcome of {key}")),
                ));
            }
            told
        });
    }
    let mut told = Vec::new();
    let mut signals = 0;
    while !clients.is_empty() {
        let slot = signals % SERVERS;
        let next = fleet.start().await;
        addresses.lock().unwrap_or_else(PoisonError::into_inner)[slot] = next.address;
        std::mem::replace(&mut servers[slot], next)
            .terminate()
            .await;
        signals += 1;
        while let Some(done) = clients.try_join_next() {
            told.extend(done.expect("no panic"));
        }
    }
    let effects = bank.effects.lock().unwrap_or_else(PoisonError::into_inner);
    let contradictory = told.iter().filter(|(_, outcome)| outcome != "1");
    Deploys {
        answered: told
            .iter()
            .map(|(key, _)| key)
            .collect::<HashSet<_>>()
            .len(),
        signals,
        hung_up: hung_up.load(Relaxed),
        twice: effects.values().filter(|effects| **effects > 1).count(),
        contradictory: contradictory.count(),
    }
}

/// Where the effects are: counts them by key, and answers with the number.
struct Bank {
    address: SocketAddr,
    effects: Arc<Mutex<HashMap<String, usize>>>,
}

impl Bank {
    async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let effects = Arc::<Mutex<HashMap<String, usize>>>::default();
        let booked = Arc::clone(&effects);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(book(stream, Arc::clone(&booked)));
            }
        });
        Self { address, effects }
    }
}

async fn book(stream: TcpStream, effects: Arc<Mutex<HashMap<String, usize>>>) {
    let mut stream = BufReader::new(stream);
    let mut key = String::new();
    if stream
        .read_line(&mut key)
        .await
        .is_ok_and(|bytes| bytes > 0)
    {
        let number = {
            let mut effects = effects.lock().unwrap_or_else(PoisonError::into_inner);
            let number = effects.entry(key).or_default();
            *number += 1;
            *number
        };
        // The handler may have died meanwhile.
        let _ = stream.write_all(format!("{number}\n").as_bytes()).await;
    }
}

/// Sends the request of `key` to one server or the other until it is answered.
async fn until_answered(
    servers: &Mutex<Vec<SocketAddr>>,
    key: usize,
    hung_up: &AtomicUsize,
) -> String {
    loop {
        let server = {
            let servers = servers.lock().unwrap_or_else(PoisonError::into_inner);
            servers[fastrand::usize(..servers.len())]
        };
        let patience = Duration::from_millis(fastrand::u64(20..250));
        match timeout(patience, send(server, key)).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => {
                let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
                return body.unwrap_or_default().to_owned();
            }
            Ok(_) => sleep(Duration::from_millis(20)).await,
            Err(_) => {
                hung_up.fetch_add(1, Relaxed);
            }
        }
    }
}

async fn send(server: SocketAddr, key: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// How servers are started.
struct Fleet {
    program: PathBuf,
    arguments: [String; 3],
}

impl Fleet {
    async fn start(&self) -> Server {
        let mut process = Command::new(&self.program)
            .arg("server")
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let _input = process.stdin.take().expect("its input");
        let output = process.stdout.take().expect("its output");
        let mut lines = BufReader::new(output).lines();
        let line = timeout(SOON, lines.next_line()).await.expect("in time");
        let line = line.expect("a line").expect("it lives");
        let address = line.parse().expect("an address");
        Server {
            process,
            _input,
            address,
        }
    }
}

struct Server {
    process: Child,
    /// It ends when this is closed.
    _input: ChildStdin,
    address: SocketAddr,
}

impl Server {
    /// As an orchestrator ends a process.
    async fn terminate(mut self) {
        let id = self.process.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it can be signalled");
        let ended = timeout(SOON, self.process.wait()).await.expect("in time");
        assert!(ended.expect("an end").success(), "it did not drain");
    }
}

/// One server: `server REDIS BANK drain|exit`. Prints its address, and ends by a SIGTERM or with its parent.
///
/// # Panics
/// If the arguments are not these, or it cannot serve.
pub async fn serve(words: &[String]) {
    let [redis, bank, mode] = words else {
        panic!("server REDIS BANK drain|exit");
    };
    let redis = Redis::connect(redis).expect("an address");
    redis.ready(SOON).await.expect("a Redis");
    let payments = Idempotency::builder("deploys")
        .store(redis.idempotency())
        .effect(Effect::Idempotent)
        .lease(LEASE)
        .build()
        .expect("valid settings");
    let bank: SocketAddr = bank.parse().expect("an address");
    let pay = async move |headers: HeaderMap| pay(bank, &headers).await;
    let once = IdempotentRequests::new(&payments).required(true);
    let app = Router::new().route("/pay", post(pay)).layer(once.layer());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a port");
    let terminate = tokio::signal::unix::SignalKind::terminate();
    let mut terminate = tokio::signal::unix::signal(terminate).expect("signals");
    println!("{}", listener.local_addr().expect("an address"));
    std::thread::spawn(end_with_the_parent);

    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let drain = async {
        terminate.recv().await;
        let _ = stop.send(());
        if mode == "drain" {
            redis.shutdown(SOON / 2).await.expect("drained in time");
        }
    };
    let (served, ()) = tokio::join!(server.into_future(), drain);
    served.expect("it serves");
}

/// The parent holds the other end of the input. A thread of its own: a runtime waits for reads of the input when it ends.
fn end_with_the_parent() {
    let mut nothing = String::new();
    let _ = std::io::stdin().read_line(&mut nothing);
    std::process::exit(1);
}

/// Takes effect in the middle.
async fn pay(bank: SocketAddr, headers: &HeaderMap) -> String {
    let some_time = || sleep(Duration::from_millis(fastrand::u64(10..100)));
    let key = headers["idempotency-key"].to_str().expect("text");
    some_time().await;
    let mut stream = BufReader::new(TcpStream::connect(bank).await.expect("the bank"));
    let line = format!("{key}\n");
    stream.write_all(line.as_bytes()).await.expect("booked");
    let mut number = String::new();
    stream.read_line(&mut number).await.expect("a number");
    some_time().await;
    number.trim().to_owned()
}
