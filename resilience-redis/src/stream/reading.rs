//! Reads: without waiting by a script, with waiting by XREADGROUP on a connection that no other command uses meanwhile.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Cmd, Value};
use resilience_core::stream::{
    Batch, Read,
    broker::{StoreError, validate},
};
use tokio::time::{Instant, sleep};

use super::{RedisStreams, steps::READ, wire, words::native};
use crate::{connection::Connection, error::CommandError, store::StoreContext};

/// How long one command waits at most.
const BLOCK: Duration = Duration::from_secs(1);
/// The longest pause between two reads of streams that cannot be waited for in one command.
const PAUSE: Duration = Duration::from_millis(20);

/// Connections that wait for messages, while no read uses them.
#[derive(Default)]
pub(super) struct Readers(Mutex<Vec<Connection>>);

/// A connection in use by one read. One whose read was dropped is closed: its answer is still to come.
struct Reader<'a> {
    readers: &'a Readers,
    connection: Connection,
}

impl Readers {
    async fn take(&self, context: &StoreContext) -> Result<Reader<'_>, CommandError> {
        let idle = self.lock().pop();
        let main = &context.connection;
        let connection = idle.unwrap_or_else(|| main.another_within(main.budget() + BLOCK));
        let reader = Reader {
            readers: self,
            connection,
        };
        if reader.connection.ready(main.budget()).await.is_err() {
            // It goes on connecting, for the next read.
            reader.give_back();
            return Err(CommandError::Down);
        }
        Ok(reader)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    fn give_back(self) {
        self.readers.lock().push(self.connection);
    }
}

impl RedisStreams {
    pub(super) async fn read_soon(&self, group: &str, read: Read<'_>) -> Result<Batch, StoreError> {
        validate::name("name of the group", group)?;
        validate::read(&read)?;
        let group = native(group);
        let keys: Vec<String> = read.streams.iter().map(|it| self.key(it)).collect();
        if read.block_ms == 0 {
            return self.read_now(&group, &keys, &read).await;
        }
        let until = Instant::now() + Duration::from_millis(read.block_ms);
        let is_one = read.streams.len() == 1;
        if is_one || (!self.context.connection.is_cluster() && read.max >= read.streams.len()) {
            self.read_blocking(&group, &keys, &read, until).await
        } else {
            self.read_in_turn(&group, &keys, &read, until).await
        }
    }

    /// Reads what is there. In a Cluster, one script per stream.
    async fn read_now(
        &self,
        group: &str,
        keys: &[String],
        read: &Read<'_>,
    ) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        let together = if self.context.connection.is_cluster() {
            1
        } else {
            keys.len()
        };
        for (keys, streams) in keys.chunks(together).zip(read.streams.chunks(together)) {
            let left = read.max - batch.deliveries.len();
            if left == 0 {
                break;
            }
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let left = left.to_string();
            let args = [group.as_bytes(), read.consumer.as_bytes(), left.as_bytes()];
            let answer = READ.run(&self.context.connection, &keys, &args).await;
            let answer = match answer {
                Ok(answer) => answer,
                // What was read before is not lost for that.
                Err(_) if !batch.deliveries.is_empty() => break,
                Err(error) => return Err(self.context.of_key(error)),
            };
            let answers = wire::list(answer).filter(|it| it.len() == streams.len());
            let answers = answers.ok_or_else(|| wire::unexpected("not one answer per stream"))?;
            for (stream, answer) in streams.iter().zip(answers) {
                let stream = Arc::from(*stream);
                if answer == Value::Int(0) {
                    batch.missing.push(stream);
                    continue;
                }
                let deliveries = wire::first_deliveries(&stream, answer);
                let deliveries = deliveries.ok_or_else(|| wire::unexpected("no entries"))?;
                batch.deliveries.extend(deliveries);
            }
        }
        Ok(batch)
    }

    async fn read_in_turn(
        &self,
        group: &str,
        keys: &[String],
        read: &Read<'_>,
        until: Instant,
    ) -> Result<Batch, StoreError> {
        let mut pause = Duration::from_millis(1);
        loop {
            let batch = self.read_now(group, keys, read).await?;
            let found = !batch.deliveries.is_empty() || !batch.missing.is_empty();
            if found || Instant::now() + pause >= until {
                return Ok(batch);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    async fn read_blocking(
        &self,
        group: &str,
        keys: &[String],
        read: &Read<'_>,
        until: Instant,
    ) -> Result<Batch, StoreError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let block = left.min(BLOCK).as_millis().max(1);
            let cmd = command(group, keys, read, block);
            let reader = self.readers.take(&self.context).await;
            let reader = reader.map_err(|error| self.context.of_key(error))?;
            let is_its = |answer: &Value| is_of(answer, keys);
            let answer = reader.connection.read_once(&keys[0], &cmd, is_its).await;
            match answer {
                Err(CommandError::Refused(error)) if is_lost(&error) => {
                    reader.give_back();
                    return self.read_now(group, keys, read).await;
                }
                Err(error) => {
                    reader.give_back();
                    return Err(self.context.of_key(error));
                }
                Ok(answer) => {
                    reader.give_back();
                    let batch = batch(answer, keys, read.streams)?;
                    if !batch.deliveries.is_empty() || Instant::now() >= until {
                        return Ok(batch);
                    }
                }
            }
        }
    }
}

/// Whether a stream or a group does not exist, or no longer.
fn is_lost(error: &str) -> bool {
    error.contains("NOGROUP") || error.contains("UNBLOCKED")
}

fn command(group: &str, keys: &[String], read: &Read<'_>, block: u128) -> Cmd {
    let mut cmd = redis::cmd("XREADGROUP");
    cmd.arg("GROUP").arg(group).arg(read.consumer);
    // Redis counts by stream.
    cmd.arg("COUNT").arg(read.max / keys.len());
    cmd.arg("BLOCK").arg(block.to_string());
    cmd.arg("STREAMS").arg(keys);
    for _ in keys {
        cmd.arg(">");
    }
    cmd
}

/// Whether an answer to XREADGROUP is about these streams. Nothing is the answer when there was no message in time: the
/// connection is used for nothing else.
fn is_of(answer: &Value, keys: &[String]) -> bool {
    let is_one = |key: &Value| matches!(key, Value::BulkString(key) if keys.iter().any(|it| it.as_bytes() == key));
    match answer {
        Value::Nil => true,
        Value::Map(pairs) => pairs.iter().all(|(key, _)| is_one(key)),
        Value::Array(pairs) => pairs.iter().all(|pair| match pair {
            Value::Array(pair) => pair.first().is_some_and(is_one),
            _ => false,
        }),
        _ => false,
    }
}

fn batch(answer: Value, keys: &[String], streams: &[&str]) -> Result<Batch, StoreError> {
    let unexpected = || wire::unexpected("no entries of the streams that were read");
    let mut batch = Batch::default();
    for (key, entries) in wire::by_key(answer).ok_or_else(unexpected)? {
        let at = keys.iter().position(|it| it.as_bytes() == key);
        let stream = Arc::from(streams[at.ok_or_else(unexpected)?]);
        let deliveries = wire::first_deliveries(&stream, entries).ok_or_else(unexpected)?;
        batch.deliveries.extend(deliveries);
    }
    Ok(batch)
}
