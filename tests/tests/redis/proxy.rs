//! The proxy of the tests does what it says.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use resilience_tests::proxy::{Proxy, Weather};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// Starts a server that returns what it receives, in capitals.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    buffer.make_ascii_uppercase();
                    stream.write_all(&buffer[..read]).await.unwrap();
                }
            });
        }
    });
    address
}

async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn it_passes_on_both_ways_and_the_end_too() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "hello").await.unwrap(), "HELLO");
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn latency_delays_every_byte_but_keeps_the_bandwidth() {
    let mut proxy = Proxy::to(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let late = Duration::from_millis(60);
    proxy.set(Weather::Latency(late)).await;
    let start = Instant::now();
    // Twenty pieces, sent separately: one after the other they would take 20 x 120 ms.
    for _ in 0..20 {
        stream.write_all(b"piece").await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = vec![0; 100];
    stream.read_exact(&mut answer).await.unwrap();
    let took = start.elapsed();
    assert!(took >= 2 * late, "{took:?}");
    assert!(took < 20 * late, "{took:?}: pieces wait for each other");
}

#[tokio::test]
async fn a_blackhole_keeps_what_it_swallows_until_it_is_healed() {
    let mut proxy = Proxy::to(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "one").await.unwrap(), "ONE");
    proxy.set(Weather::Blackhole).await;
    stream.write_all(b"two").await.unwrap();
    let mut answer = [0; 3];
    let nothing = within(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
    assert!(nothing.is_none(), "{nothing:?}");
    proxy.set(Weather::Fine).await;
    within(PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"TWO");
}

#[tokio::test]
async fn a_reset_is_a_reset_on_open_connections_and_on_new_ones() {
    let mut proxy = Proxy::to(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "one").await.unwrap(), "ONE");
    proxy.set(Weather::Reset).await;
    let error = within(PATIENCE, ask_until_it_fails(&mut stream))
        .await
        .unwrap();
    assert!(is_reset(&error), "{error:?}");
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let error = within(PATIENCE, ask_until_it_fails(&mut stream))
        .await
        .unwrap();
    assert!(is_reset(&error), "{error:?}");
    proxy.set(Weather::Fine).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "back").await.unwrap(), "BACK");
}

#[tokio::test]
async fn refusing_closes_the_port_and_the_same_port_comes_back() {
    let mut proxy = Proxy::to(echo().await).await.unwrap();
    let mut open = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut open, "one").await.unwrap(), "ONE");
    proxy.set(Weather::Refuse).await;
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let error = within(PATIENCE, ask_until_it_fails(&mut open))
        .await
        .unwrap();
    assert!(is_reset(&error), "{error:?}");
    proxy.set(Weather::Fine).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "back").await.unwrap(), "BACK");
}

#[tokio::test]
async fn a_cut_comes_after_exactly_so_many_bytes() {
    let mut proxy = Proxy::to(echo().await).await.unwrap();
    proxy.set(Weather::CutAfter(4)).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"sevenish").await.unwrap();
    let mut answer = Vec::new();
    let _ = within(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"SEVE");
}

async fn ask_until_it_fails(stream: &mut TcpStream) -> io::Error {
    loop {
        if let Err(error) = ask(stream, "again").await {
            return error;
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    // The first write after the reset may still succeed; the next read or write fails.
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
