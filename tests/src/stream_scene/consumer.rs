//! One of the processes: consumes until its input ends.

use std::{
    io,
    net::SocketAddr,
    process::id,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use resilience_core::{Consumer, FleetOptions, stream::Message};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin},
    net::TcpStream,
};

use super::{BUDGET, GROUP, LEASE, SOON, STREAM, connect};

/// The argument that makes a program one of the processes: `consumer URL LEDGER works|hangs`. One that hangs does so in the first
/// attempt at each event, once it is written.
pub const INSTANCE: &str = "consumer";

/// Runs one of the processes.
///
/// # Panics
///
/// If its arguments make no sense, or the consumer ends by itself.
pub async fn consume(arguments: &[String]) {
    let [url, ledger, how] = arguments else {
        panic!("URL LEDGER works|hangs");
    };
    let ledger = ledger.parse().expect("an address");
    let writer = Writer {
        ledger,
        hangs: how == "hangs",
        idle: Arc::default(),
    };
    let consumer = Consumer::<u64>::builder(STREAM, connect(url).await)
        .group(GROUP)
        .concurrency(16)
        .prefetch(64)
        .lanes(|it| it.key.clone())
        .lease(LEASE)
        .max_deliveries(u32::MAX)
        .poll(Duration::from_millis(100))
        .effect_once()
        .fleet(FleetOptions::new().budget(BUDGET))
        .build()
        .expect("good settings");
    let consumer = Arc::new(consumer);
    println!("ready");
    let handler = move |message: Message<u64>| {
        let writer = writer.clone();
        async move { writer.take_effect(&message).await }
    };
    let running = {
        let consumer = Arc::clone(&consumer);
        tokio::spawn(async move { consumer.run(handler).await })
    };
    let _ = stdin().read_to_end(&mut Vec::new()).await;
    consumer.shutdown(SOON).await.expect("it ends");
    running.await.expect("no panic").expect("it served");
}

#[derive(Clone)]
struct Writer {
    ledger: SocketAddr,
    hangs: bool,
    /// Connections that no write uses.
    idle: Arc<Mutex<Vec<BufReader<TcpStream>>>>,
}

impl Writer {
    async fn take_effect(&self, message: &Message<u64>) -> Result<(), io::Error> {
        let fence = message.fence().expect("effects are recorded");
        let answer = self.write(*message.event(), fence).await?;
        if answer != "done" {
            return Err(io::Error::other(answer));
        }
        if self.hangs && message.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        if fastrand::u8(..16) == 0 {
            // Time to die in: it has taken effect, and is not recorded.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..20))).await;
        }
        message.record(fence.to_string());
        Ok(())
    }

    async fn write(&self, event: u64, fence: u64) -> Result<String, io::Error> {
        let idle = self.idle().pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.ledger).await?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let line = format!("{event} {fence} {}\n", id());
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        // Not kept if this was dropped in between: the answer would be the next one's.
        self.idle().push(stream);
        Ok(answer.trim().to_owned())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<BufReader<TcpStream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
