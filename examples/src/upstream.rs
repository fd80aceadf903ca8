//! The upstream that misbehaves: a small HTTP server on loopback, driven by the [`Phase`] it is told.
//!
//! It is modelled on a service with a pool of workers: only so many requests are worked on at a time, the rest wait in
//! line, and what was accepted is worked through even when the client has hung up meanwhile. So a client that
//! sends more than the upstream can bear pays for it later, as in life.
//!
//! Each client gets an upstream of its own, so that neither feels the other's load. What becomes of a request is
//! decided by seed, number of the call and how often that call was tried, so call 17 meets the same fate at all.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use crate::{script::Phase, stats::PerPhase};

/// A running upstream. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    shop: Arc<Shop>,
    server: JoinHandle<io::Result<()>>,
}

/// A request that arrived when the upstream was back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    /// The number of the call.
    pub(crate) call: u64,
}

impl Upstream {
    /// Starts one with so many workers on a free port of the loopback interface; it behaves as `phase` says at any
    /// time.
    pub(crate) async fn start(
        seed: u64,
        workers: usize,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<Self> {
        let port = Port::reserve((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = port.0.local_addr()?;
        let shop = Arc::new(Shop {
            seed,
            phase,
            workers: Semaphore::new(workers),
            served: PerPhase::default(),
            back: Mutex::default(),
            tries: Mutex::default(),
        });
        let listener = port.listen()?;
        let server = tokio::spawn(open_and_close(Arc::clone(&shop), listener, address));
        Ok(Self {
            address,
            shop,
            server,
        })
    }

    /// Where it listens, also while it is down.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that arrived, by phase.
    pub(crate) fn served(&self) -> &PerPhase {
        &self.shop.served
    }

    /// Requests that arrived since it is back, oldest first.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.shop.lock_back().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A port that is ours while nothing listens on it: connections are refused, and nobody else can take it.
struct Port(TcpSocket);

impl Port {
    fn reserve(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // The connections that were just reset must not keep us from having our own port back.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self(socket))
    }

    fn listen(self) -> io::Result<TcpListener> {
        self.0.listen(1024)
    }
}

/// Listens until the script says down, then closes the door, resets every connection, and opens again.
async fn open_and_close(
    shop: Arc<Shop>,
    mut listener: TcpListener,
    address: SocketAddr,
) -> io::Result<()> {
    let mut phase = shop.phase.clone();
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        // Closing with linger zero is what sends a reset.
                        stream.set_zero_linger()?;
                        connections.spawn(converse(Arc::clone(&shop), stream));
                    }
                }
                _ = connections.join_next(), if !connections.is_empty() => {}
                down = phase.wait_for(|&phase| phase == Phase::Down) => match down {
                    Ok(_) => break,
                    Err(_) => return Ok(()),
                },
            }
        }
        drop(listener);
        let port = Port::reserve(address)?;
        connections.shutdown().await;
        if phase.wait_for(|&phase| phase != Phase::Down).await.is_err() {
            return Ok(());
        }
        listener = port.listen()?;
    }
}

/// Serves one connection until the client closes it or the upstream goes down.
async fn converse(shop: Arc<Shop>, stream: TcpStream) {
    let service = service_fn(move |request: Request<Incoming>| answer(Arc::clone(&shop), request));
    // An error here is the client's hanging up: expected, and seen on its side.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    shop: Arc<Shop>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let arrived = *shop.phase.borrow();
    shop.served.add(arrived);
    let call = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    if arrived == Phase::Back {
        let at = Instant::now();
        shop.lock_back().push(Arrival { at, call });
    }
    let mut fate = shop.fate(call);
    // Detached: a worker does not notice that the client has gone.
    let work = tokio::spawn(async move { shop.work(&mut fate).await });
    let Some(status) = work.await.ok().flatten() else {
        // It crashed: no answer, and the connection is about to be reset.
        return std::future::pending().await;
    };
    let mut response = Response::new(Full::from(format!("{{\"order\":{call}}}\n")));
    *response.status_mut() = status;
    Ok(response)
}

/// What the connections of one upstream share.
#[derive(Debug)]
struct Shop {
    seed: u64,
    phase: watch::Receiver<Phase>,
    workers: Semaphore,
    served: PerPhase,
    /// What arrived since it is back. Bounded by the length of the run.
    back: Mutex<Vec<Arrival>>,
    /// How often each call has been tried. Bounded by the length of the run.
    tries: Mutex<HashMap<u64, u64>>,
}

impl Shop {
    fn lock_back(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws what becomes of this try of `call`: the same for every upstream with the same seed.
    fn fate(&self, call: u64) -> fastrand::Rng {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let count = tries.entry(call).or_default();
        *count += 1;
        fastrand::Rng::with_seed(self.seed ^ (call << 8) ^ *count)
    }

    /// Waits for a worker and does the work; `None` if the upstream crashed meanwhile.
    async fn work(&self, fate: &mut fastrand::Rng) -> Option<StatusCode> {
        let mut crash = self.phase.clone();
        tokio::select! {
            biased;
            _ = crash.wait_for(|&phase| phase == Phase::Down) => None,
            status = self.work_through(fate) => Some(status),
        }
    }

    async fn work_through(&self, fate: &mut fastrand::Rng) -> StatusCode {
        let Ok(_worker) = self.workers.acquire().await else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        let phase = *self.phase.borrow();
        match phase.service_ms() {
            Some(milliseconds) => sleep(Duration::from_millis(fate.u64(milliseconds))).await,
            None => {
                let mut later = self.phase.clone();
                let _ = later.wait_for(|&now| now != phase).await;
            }
        }
        if fate.f64() < phase.failing() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(upstream: &Upstream, call: u64) -> Result<u16, reqwest::Error> {
        let url = format!("http://{}/orders/{call}", upstream.address());
        Ok(reqwest::get(url).await?.status().as_u16())
    }

    #[tokio::test]
    async fn while_it_is_down_connections_are_refused_and_it_comes_back_on_the_same_port() {
        let (conductor, phase) = watch::channel(Phase::Healthy);
        let upstream = Upstream::start(7, 16, phase).await.unwrap();
        assert_eq!(get(&upstream, 1).await.unwrap(), 200);

        conductor.send_replace(Phase::Down);
        // The server's task may need a moment to hear of it, and to reset who was in the door.
        let refused = async {
            while !matches!(get(&upstream, 2).await, Err(error) if format!("{error:?}").contains("ConnectionRefused"))
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), refused)
            .await
            .expect("refused");

        conductor.send_replace(Phase::Back);
        let back = async {
            while get(&upstream, 3).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), back)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_connection_in_use_is_reset_when_it_goes_down() {
        let (conductor, phase) = watch::channel(Phase::Hanging);
        let upstream = Upstream::start(7, 16, phase).await.unwrap();
        let hung = get(&upstream, 1);
        tokio::pin!(hung);
        while upstream.served().get(Phase::Hanging) == 0 {
            tokio::select! {
                early = &mut hung => panic!("a hanging upstream answered: {early:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        conductor.send_replace(Phase::Down);
        let error = tokio::time::timeout(Duration::from_secs(10), hung)
            .await
            .unwrap();
        assert!(!error.unwrap_err().is_timeout());
    }

    #[tokio::test]
    async fn a_call_meets_the_same_fate_at_all_upstreams() {
        let (_conductor, phase) = watch::channel(Phase::Failing);
        let one = Upstream::start(7, 16, phase.clone()).await.unwrap();
        let other = Upstream::start(7, 16, phase).await.unwrap();
        let mut failed = 0;
        for call in 0..40 {
            let (here, there) = (
                get(&one, call).await.unwrap(),
                get(&other, call).await.unwrap(),
            );
            assert_eq!(here, there, "call {call}");
            failed += u32::from(here == 503);
        }
        assert!(
            (4..=20).contains(&failed),
            "30 % of 40 are 12, not {failed}"
        );
    }
}
