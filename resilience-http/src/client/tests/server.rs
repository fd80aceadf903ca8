//! A server on loopback that responds by a script, down to the bytes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(super) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// What happens to a connection once a request has arrived.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write(String),
    Pause(Duration),
    /// Ends the connection with a reset instead of a close.
    Reset,
    Close,
    /// Keeps the connection open and silent.
    Hang,
}

/// A complete response, with its length.
pub(super) fn answer(status: &str, headers: &str, body: &str) -> Vec<Step> {
    vec![head(status, headers, body.len()), write(body)]
}

/// The head of a response that announces `length` bytes.
pub(super) fn head(status: &str, headers: &str, length: usize) -> Step {
    Step::Write(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n"
    ))
}

pub(super) fn write(text: &str) -> Step {
    Step::Write(text.into())
}

impl Server {
    /// Responds to the nth request, counted from 1, by `script(n)`.
    pub(super) async fn start<F>(script: F) -> Self
    where
        F: Fn(usize) -> Vec<Step> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (all, script) = (Arc::clone(&seen), Arc::new(script));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all), Arc::clone(&script)));
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/pay?n=1", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F>(stream: TcpStream, seen: Arc<Mutex<Vec<Seen>>>, script: Arc<F>)
where
    F: Fn(usize) -> Vec<Step>,
{
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let n = {
            let mut seen = seen.lock().unwrap();
            seen.push(request);
            seen.len()
        };
        for step in script(n) {
            match step {
                Step::Write(bytes) if stream.write_all(bytes.as_bytes()).await.is_err() => return,
                Step::Write(_) => {}
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Reset => return stream.get_ref().set_zero_linger().unwrap(),
                Step::Close => return,
                Step::Hang => std::future::pending().await,
            }
        }
    }
}

/// One request; `None` when the client has disconnected.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?))
    };
    let headers: HeaderMap = lines.filter_map(header).collect();
    let length = headers.get("content-length");
    let length = length.map_or(0, |length| length.to_str().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen {
        line,
        headers,
        body,
    })
}
