//! Reads: plain commands, whose answers carry no nonce.

use std::sync::atomic::Ordering::Relaxed;

use redis::{Cmd, Value};
use resilience_core::{
    Pattern,
    cache::{record::Entry, store::StoreError},
};

use super::{
    Key, RedisCache,
    wire::{self, Content},
};
use crate::{connection::Connection, error::CommandError};

impl RedisCache {
    pub(super) async fn get_one(&self, name: &str, key: &str) -> Result<Option<Entry>, StoreError> {
        let Key { key, hash } = self.checked(name, key)?;
        let mut get = Cmd::with_capacity(2, key.len() + 3);
        get.arg("GET").arg(&key);
        let is_its = |answer: &Value| wire::is_of(answer, hash);
        let connection = self.connection();
        match connection.read(&key, &get, is_its).await {
            Ok(answer) => self.value(name, answer, hash, now(&connection)),
            Err(CommandError::Refused(error)) if error.contains("WRONGTYPE") => {
                self.report(name);
                Ok(None)
            }
            Err(error) => Err(self.context.of_key(error)),
        }
    }

    /// One MGET.
    pub(super) async fn get_all(
        &self,
        name: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        let keys: Vec<Key> = keys
            .iter()
            .map(|key| self.checked(name, key))
            .collect::<Result<_, _>>()?;
        let mut get = redis::cmd("MGET");
        for key in &keys {
            get.arg(&key.key);
        }
        let is_its = |answer: &Value| match answer {
            Value::Array(items) if items.len() == keys.len() => {
                let mut pairs = items.iter().zip(&keys);
                pairs.all(|(item, key)| wire::is_of(item, key.hash))
            }
            _ => false,
        };
        let first = &keys[0].key;
        let connection = self.connection();
        let answer = connection.read(first, &get, is_its).await;
        match answer.map_err(|error| self.context.of_key(error))? {
            Value::Array(items) if items.len() == keys.len() => {
                let now = now(&connection);
                let pairs = items.into_iter().zip(&keys);
                pairs
                    .map(|(item, key)| self.value(name, item, key.hash, now))
                    .collect()
            }
            _ => Err(wire::unexpected("not one value per key")),
        }
    }

    fn value(
        &self,
        name: &str,
        answer: Value,
        hash: u64,
        now: u64,
    ) -> Result<Option<Entry>, StoreError> {
        match wire::content(answer, hash, now) {
            Some(Content::Entry(entry)) => Ok(Some(entry)),
            Some(Content::Nothing) => Ok(None),
            Some(Content::Foreign) => {
                self.report(name);
                Ok(None)
            }
            None => Err(wire::unexpected("neither bytes nor nothing")),
        }
    }

    /// Emits an event about the first foreign value.
    fn report(&self, name: &str) {
        if !self.reported.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::Cache.as_str(),
                name,
                "a key of the cache holds something else, or a format that this version does not know: it counts as a miss, and is replaced"
            );
        }
    }
}

/// The estimated time of the server, in milliseconds.
fn now(connection: &Connection) -> u64 {
    connection.clock().now() / 1000
}
