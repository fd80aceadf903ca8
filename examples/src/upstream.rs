//! The upstream that misbehaves: a small HTTP server on loopback, driven by the [`Phase`] it is told.
//!
//! It is modelled on a service with a pool of workers: a limited number of requests are processed at a time, the rest wait in
//! line, and what was accepted is worked through even when the client has hung up meanwhile. So a client that
//! sends more than the upstream can bear pays for it later, as in life.
//!
//! Each client gets an upstream of its own, so that neither feels the other's load. What becomes of a request is
//! decided by seed, number of the call and how often that call was tried, so call 17 meets the same fate at all.
//!
//! Orders are asked for (`GET /orders/17`), payments are made (`POST /payments/17`): booked when a worker begins with
//! them. An upstream that was given [`IdempotentRequests`] makes each of them once.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use resilience_http::IdempotentRequests;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use tower::{BoxError, Layer, Service, service_fn};

use crate::{payments::Till, script::Phase, stats::PerPhase};

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
    /// Starts one with `workers` workers on a free port of the loopback interface; it behaves as `phase` says at any
    /// time.
    pub(crate) async fn start(
        seed: u64,
        workers: usize,
        phase: watch::Receiver<Phase>,
        once: Option<IdempotentRequests>,
    ) -> io::Result<Self> {
        let port = Port::reserve((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = port.0.local_addr()?;
        let shop = Arc::new(Shop {
            seed,
            phase,
            workers: Semaphore::new(workers),
            once,
            till: Till::default(),
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

    /// What payments took effect.
    pub(crate) fn till(&self) -> &Till {
        &self.shop.till
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

/// A port that is ours while nothing listens on it: connections are refused, and no other process can take it.
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
    match shop.once.clone() {
        Some(once) => serve(stream, once.layer().layer(desk(shop))).await,
        None => serve(stream, desk(shop)).await,
    }
}

async fn serve<S, B>(stream: TcpStream, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Crashed> + Clone,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    // An error here is the client's hanging up or the crash: expected, and seen on its side.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
}

fn desk<B: Send + 'static>(
    shop: Arc<Shop>,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Crashed, Future: Send>
+ Clone
+ Send
+ 'static {
    service_fn(move |request: Request<B>| answer(Arc::clone(&shop), request))
}

/// The upstream went down: there is no answer, and the connection is reset.
#[derive(Clone, Copy, Debug)]
struct Crashed;

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("crashed")
    }
}

impl std::error::Error for Crashed {}

async fn answer<B>(shop: Arc<Shop>, request: Request<B>) -> Result<Response<Full<Bytes>>, Crashed> {
    let arrived = *shop.phase.borrow();
    shop.served.add(arrived);
    let call = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let payment = (request.method() == Method::POST).then_some(call);
    if arrived == Phase::Back {
        let at = Instant::now();
        shop.lock_back().push(Arrival { at, call });
    }
    let mut fate = shop.fate(call);
    // Detached: a worker does not notice that the client has gone.
    let work = tokio::spawn(async move { shop.work(&mut fate, payment).await });
    let status = work.await.ok().flatten().ok_or(Crashed)?;
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
    /// If it sees to it that payments are made once.
    once: Option<IdempotentRequests>,
    till: Till,
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
    async fn work(&self, fate: &mut fastrand::Rng, payment: Option<u64>) -> Option<StatusCode> {
        let mut crash = self.phase.clone();
        tokio::select! {
            biased;
            _ = crash.wait_for(|&phase| phase == Phase::Down) => None,
            status = self.work_through(fate, payment) => Some(status),
        }
    }

    async fn work_through(&self, fate: &mut fastrand::Rng, payment: Option<u64>) -> StatusCode {
        let Ok(_worker) = self.workers.acquire().await else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        let phase = *self.phase.borrow();
        let takes = phase.service_ms().map(|range| fate.u64(range));
        let fails = fate.f64() < phase.failing();
        if let Some(payment) = payment.filter(|_| !fails) {
            self.till.book(payment);
        }
        match takes {
            Some(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
            None => {
                let mut later = self.phase.clone();
                let _ = later.wait_for(|&now| now != phase).await;
            }
        }
        if fails {
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
        let upstream = Upstream::start(7, 16, phase, None).await.unwrap();
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
        let upstream = Upstream::start(7, 16, phase, None).await.unwrap();
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
        let one = Upstream::start(7, 16, phase.clone(), None).await.unwrap();
        let other = Upstream::start(7, 16, phase, None).await.unwrap();
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
