//! A server that speaks Redis' protocol and answers as a test says.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A running server; dropping it closes its connections.
#[derive(Debug)]
pub struct FakeRedis {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl FakeRedis {
    /// Answers every command with what `answer` makes of its words, in the protocol; empty text is no answer. What a client
    /// sends when it connects is answered by the server itself, unless `answer` does.
    ///
    /// # Panics
    ///
    /// When no port is free.
    pub async fn start(
        answer: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                connections.spawn(async move { serve(socket, &*answer).await });
            }
        });
        Self { address, task }
    }

    /// A sentinel that names `master`, of which it knows no failover, whatever happens.
    pub async fn sentinel(master: SocketAddr) -> Self {
        let (host, port) = (master.ip().to_string(), master.port().to_string());
        Self::start(move |words| {
            let fields = [
                "ip",
                &host,
                "port",
                &port,
                "flags",
                "master",
                "config-epoch",
                "0",
            ];
            match words[1..].first()?.to_uppercase().as_str() {
                "GET-MASTER-ADDR-BY-NAME" => Some(list(&[&host, &port])),
                "MASTER" => Some(list(&fields)),
                _ => None,
            }
        })
        .await
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FakeRedis {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One text in the protocol.
#[must_use]
pub fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// Several texts in the protocol.
#[must_use]
pub fn list(texts: &[&str]) -> String {
    let items: String = texts.iter().map(|text| bulk(text)).collect();
    format!("*{}\r\n{items}", texts.len())
}

async fn serve(
    mut socket: TcpStream,
    answer: &(dyn Fn(&[String]) -> Option<String> + Send + Sync),
) -> io::Result<()> {
    let (reader, mut writer) = socket.split();
    let mut reader = BufReader::new(reader);
    loop {
        let words = read(&mut reader).await?;
        let answer = answer(&words).unwrap_or_else(|| by_itself(&words));
        writer.write_all(answer.as_bytes()).await?;
    }
}

fn by_itself(words: &[String]) -> String {
    let word = words.get(1).map_or("", String::as_str);
    match words[0].to_uppercase().as_str() {
        "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
        "TIME" => list(&["1700000000", "0"]),
        "ROLE" => list(&["master"]),
        "INFO" => bulk("maxmemory:0"),
        "PING" if word.is_empty() => "+PONG\r\n".to_owned(),
        "PING" => bulk(word),
        kind @ ("SUBSCRIBE" | "PSUBSCRIBE") => {
            format!(">3\r\n{}{}:1\r\n", bulk(&kind.to_lowercase()), bulk(word))
        }
        _ => "+OK\r\n".to_owned(),
    }
}

/// Reads the words of one command.
async fn read(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..number(reader).await? {
        let mut word = vec![0; number(reader).await? + 2];
        reader.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    match words.is_empty() {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(words),
    }
}

/// Reads the number of `*number` or `$number`.
async fn number(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<usize> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let number = line.get(1..).unwrap_or_default().trim();
    number.parse().map_err(io::Error::other)
}
