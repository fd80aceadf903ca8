//! A Lua script beside the Rust that calls it: sent by digest, sent whole once when the server does not know it.

use std::time::Duration;

use redis::{Cmd, Value};

use crate::{error::StoreError, link::Link};

/// One script. Made in a `static` by [`Script::new`]; the digest is computed once.
pub(crate) struct Script {
    source: &'static str,
    digest: String,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self {
            source,
            digest: sha1_smol::Sha1::from(source).digest().to_string(),
        }
    }

    /// Runs it: one round trip, two when the server's script cache was lost. EVAL refills the cache.
    pub(crate) async fn run(
        &self,
        link: &Link,
        keys: &[&str],
        args: &[&[u8]],
    ) -> Result<Value, StoreError> {
        match link
            .send(&self.command("EVALSHA", &self.digest, keys, args))
            .await
        {
            Err(error) if is_unknown(&error) => {
                link.send(&self.command("EVAL", self.source, keys, args))
                    .await
            }
            answer => answer,
        }
    }

    /// Runs it on one key, and waits on the same connection until so many replicas have what it wrote, but no longer
    /// than `within`. The answer, and how many have it.
    pub(crate) async fn run_and_wait(
        &self,
        link: &Link,
        key: &str,
        args: &[&[u8]],
        replicas: u32,
        within: Duration,
    ) -> Result<(Value, u64), StoreError> {
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas).arg(within.as_millis() as u64);
        let by_digest = self.command("EVALSHA", &self.digest, &[key], args);
        match link.send_and_wait(key, &by_digest, &wait).await {
            Err(error) if is_unknown(&error) => {
                let whole = self.command("EVAL", self.source, &[key], args);
                link.send_and_wait(key, &whole, &wait).await
            }
            answer => answer,
        }
    }

    fn command(&self, name: &str, script: &str, keys: &[&str], args: &[&[u8]]) -> Cmd {
        let words = keys
            .iter()
            .map(|key| key.as_bytes())
            .chain(args.iter().copied());
        let bytes: usize = words.map(<[u8]>::len).sum();
        let mut cmd = Cmd::with_capacity(keys.len() + args.len() + 3, bytes + script.len() + 16);
        cmd.arg(name).arg(script).arg(keys.len());
        for key in keys {
            cmd.arg(*key);
        }
        for arg in args {
            cmd.arg(*arg);
        }
        cmd
    }
}

/// Whether the server does not know the script.
fn is_unknown(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(error) if error.contains("NOSCRIPT") || error.contains("NoScript"))
}
