//! A Lua script beside the Rust that calls it: sent by digest, sent whole once when the server does not know it.

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
            Err(StoreError::Refused(error))
                if error.contains("NOSCRIPT") || error.contains("NoScript") =>
            {
                link.send(&self.command("EVAL", self.source, keys, args))
                    .await
            }
            answer => answer,
        }
    }

    fn command(&self, name: &str, script: &str, keys: &[&str], args: &[&[u8]]) -> Cmd {
        let mut cmd = redis::cmd(name);
        cmd.arg(script).arg(keys.len());
        for key in keys {
            cmd.arg(*key);
        }
        for arg in args {
            cmd.arg(*arg);
        }
        cmd
    }
}
