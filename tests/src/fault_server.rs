//! An HTTP server made of raw sockets, so that it can break the protocol wherever a test wants it broken.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// A whole answer: status, header lines, body.
    Answer(u16, Vec<String>, String),
    /// The connection is reset as soon as it is accepted.
    ResetOnAccept,
    /// The connection is reset once the request has been read.
    ResetAfterRequest,
    /// Half of the announced length, then the end.
    HalfOfTheLength,
    /// A chunk, and the end where the next should be.
    CutInChunks,
    /// The request is read, and nothing comes.
    HangBeforeHeaders,
    /// Headers, and no body.
    HangAfterHeaders,
    /// A body of `pieces` pieces, one `every` so often.
    Trickle {
        /// How many.
        pieces: u32,
        /// How far apart.
        every: Duration,
    },
    /// What comes back is not HTTP.
    Garbage,
}

impl Behaviour {
    /// A plain 200.
    #[must_use]
    pub fn ok() -> Self {
        Self::Answer(200, Vec::new(), String::from("fine"))
    }

    /// An empty answer of this status.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    /// An empty answer with one header more.
    #[must_use]
    pub fn with_header(status: u16, header: &str) -> Self {
        Self::Answer(status, vec![header.to_owned()], String::new())
    }
}

/// A running server; dropping it ends it and all of its connections.
#[derive(Debug)]
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    connections: AtomicU64,
    open: AtomicU64,
    heads: Mutex<Vec<String>>,
}

impl FaultServer {
    /// Listens on a free loopback port.
    ///
    /// # Panics
    /// If there is no port to be had.
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            heads: Mutex::default(),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            task,
        }
    }

    /// Changes what becomes of the requests to come.
    pub fn set(&self, behaviour: Behaviour) {
        *self
            .shared
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Request lines and headers of all requests so far, as they came.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.shared
            .heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many requests came.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.heads().len()
    }

    /// How many connections were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(SeqCst)
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address on which no server listens.
///
/// # Panics
/// If there is no port to be had.
#[must_use]
pub fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket")
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Aborting this task drops the set, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, SeqCst);
        shared.open.fetch_add(1, SeqCst);
        let open = Open(Arc::clone(&shared));
        connections.spawn(async move { answer(stream, &open.0).await });
    }
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

/// One request for each connection.
async fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let behaviour = || {
        shared
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    };
    if behaviour() == Behaviour::ResetOnAccept {
        return stream.set_zero_linger();
    }
    let head = read_request(&mut stream).await?;
    shared
        .heads
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(head);
    match behaviour() {
        Behaviour::Answer(status, headers, body) => {
            let lines: String = headers
                .iter()
                .map(|header| format!("{header}\r\n"))
                .collect();
            let length = body.len();
            write(&mut stream, &format!("HTTP/1.1 {status} Said\r\n{lines}content-length: {length}\r\nconnection: close\r\n\r\n{body}")).await
        }
        Behaviour::ResetOnAccept | Behaviour::ResetAfterRequest => stream.set_zero_linger(),
        Behaviour::HalfOfTheLength => {
            write(
                &mut stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf.",
            )
            .await
        }
        Behaviour::CutInChunks => {
            write(
                &mut stream,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf.\r\n",
            )
            .await
        }
        Behaviour::HangBeforeHeaders => until_the_client_leaves(&mut stream).await,
        Behaviour::HangAfterHeaders => {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await?;
            until_the_client_leaves(&mut stream).await
        }
        Behaviour::Trickle { pieces, every } => {
            let length = pieces * 5;
            write(
                &mut stream,
                &format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
                ),
            )
            .await?;
            for _ in 0..pieces {
                sleep(every).await;
                write(&mut stream, "piece").await?;
            }
            Ok(())
        }
        Behaviour::Garbage => {
            write(
                &mut stream,
                "\u{1}this is no protocol that you know\r\n\r\n",
            )
            .await
        }
    }
}

/// The head of the request, as text; its body is read too, so that closing the connection is not a reset.
async fn read_request(stream: &mut TcpStream) -> io::Result<String> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let end = request.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length
                .and_then(|length| length.trim().parse().ok())
                .unwrap_or(0);
            if request.len() >= end + 4 + length {
                return Ok(head);
            }
        }
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
}

async fn write(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

async fn until_the_client_leaves(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
