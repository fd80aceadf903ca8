//! A TCP proxy that injects faults, in front of any server of the tests.
//!
//! Latency is a delay line: every byte is late, none waits for the one before it, so the bandwidth is unchanged. A
//! blackhole keeps all bytes and delivers them when it ends, as TCP would. The kernel still acknowledges them, so no
//! timeout of the socket fires.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// What the proxy does to open and new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Passes everything on.
    Fine,
    /// Delays every byte by this time, in each direction.
    Latency(Duration),
    /// Holds everything back.
    Blackhole,
    /// Resets open connections, and every new one as soon as it is accepted.
    Reset,
    /// Resets open connections, and closes the port.
    Refuse,
    /// Forgets a connection that was idle for this time, as a NAT gateway does: swallows whatever comes over it from then on.
    ForgetIdle(Duration),
    /// Closes a connection, in an orderly way, after this number of bytes to the client.
    CutAfter(usize),
}

/// A running proxy; dropping it closes all of its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    upstream: watch::Sender<SocketAddr>,
    weather: watch::Sender<Weather>,
    listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port, in front of `upstream`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fine);
        let (upstream, leads_to) = watch::channel(upstream);
        let (says, listening) = watch::channel(true);
        let task = tokio::spawn(serve(Some(listener), address, leads_to, seen, says));
        Ok(Self {
            address,
            upstream,
            weather,
            listening,
            task,
        })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections to another server; open ones stay where they are.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Changes the weather, and returns when the port is open or closed accordingly.
    pub async fn set(&mut self, weather: Weather) {
        self.weather.send_replace(weather);
        let open = weather != Weather::Refuse;
        // An error means that the proxy has ended.
        let _ = self
            .listening
            .wait_for(|listening| *listening == open)
            .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut listener: Option<TcpListener>,
    address: SocketAddr,
    upstream: watch::Receiver<SocketAddr>,
    mut weather: watch::Receiver<Weather>,
    says: watch::Sender<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let now = *weather.borrow_and_update();
        if now == Weather::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = listen_again(address).ok();
        }
        says.send_replace(listener.is_some());
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accept => {
                let upstream = *upstream.borrow();
                connections.spawn(connect(client, upstream, weather.clone()));
            }
            changed = weather.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn listen_again(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Runs one connection, until either side or the weather ends it.
async fn connect(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let stormy = |weather: &Weather| matches!(weather, Weather::Reset | Weather::Refuse);
    if stormy(&weather.borrow()) {
        return client.set_zero_linger();
    }
    let mut server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let memory = Memory::default();
    let up = pump(from_client, to_server, weather.clone(), &memory, false);
    let down = pump(from_server, to_client, weather.clone(), &memory, true);
    let storm = weather.wait_for(stormy);
    let reset = tokio::select! {
        // A cut ends the connection both ways, and so does an error; an orderly end waits for the other direction.
        result = async { tokio::try_join!(up, down) } => return result.map(drop),
        _ = storm => true,
    };
    if reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// When a connection was last used, unless it is forgotten.
struct Memory(Mutex<Option<Instant>>);

impl Default for Memory {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Memory {
    /// Notes that bytes have come. Whether the connection is still known.
    fn used(&self, weather: Weather) -> bool {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Weather::ForgetIdle(limit), Some(last)) = (weather, *used)
            && last.elapsed() >= limit
        {
            *used = None;
        }
        if used.is_some() {
            *used = Some(Instant::now());
        }
        used.is_some()
    }
}

/// Copies one direction: reads at once, writes when due.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    weather: watch::Receiver<Weather>,
    memory: &Memory,
    to_client: bool,
) -> io::Result<()> {
    let (send, mut due) = mpsc::channel::<(Instant, Bytes)>(1024);
    let reading = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).await?;
            let now = *weather.borrow();
            if !memory.used(now) {
                continue;
            }
            let late = match now {
                Weather::Latency(late) => late,
                _ => Duration::ZERO,
            };
            let chunk = Bytes::copy_from_slice(&buffer[..read]);
            if send.send((Instant::now() + late, chunk)).await.is_err() || read == 0 {
                drop(send);
                return Ok::<_, io::Error>(());
            }
        }
    };
    let mut seen = weather.clone();
    let writing = async move {
        let mut written = 0;
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            let now = *seen
                .wait_for(|weather| *weather != Weather::Blackhole)
                .await
                .map_err(io::Error::other)?;
            if chunk.is_empty() {
                break;
            }
            match now {
                Weather::CutAfter(most) if to_client && written + chunk.len() >= most => {
                    to.write_all(&chunk[..most.saturating_sub(written)]).await?;
                    return Err(io::Error::other("cut"));
                }
                _ => to.write_all(&chunk).await?,
            }
            written += chunk.len();
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}
