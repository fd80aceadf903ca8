//! A Lua script beside the Rust that calls it: sent by digest, sent whole once when the server does not know it.

use std::time::Duration;

use redis::{Cmd, Value};

use crate::{
    error::StoreError,
    link::{Link, Nonce},
};

/// What stands around every script: the last argument is a nonce, which comes back first in the answer. The script itself
/// sees neither.
const BEFORE: &str = "local nonce = ARGV[#ARGV]\nARGV[#ARGV] = nil\nlocal function script()\n";
const BEHIND: &str = "\nend\nreturn { nonce, (script()) }\n";

/// One script. Made in a `static` by [`Script::new`]; the digest is computed once.
pub(crate) struct Script {
    source: String,
    digest: String,
}

impl Script {
    pub(crate) fn new(source: &str) -> Self {
        let source = [BEFORE, source, BEHIND].concat();
        let digest = sha1_smol::Sha1::from(&source).digest().to_string();
        Self { source, digest }
    }

    /// Runs it: one round trip, two when the server's script cache was lost. EVAL refills the cache. The answer is that
    /// of this call, or an error.
    pub(crate) async fn run(
        &self,
        link: &Link,
        keys: &[&str],
        args: &[&[u8]],
    ) -> Result<Value, StoreError> {
        let nonce = link.nonce();
        let by_digest = command("EVALSHA", &self.digest, keys, args, &nonce);
        match link.ask(&by_digest, &nonce).await {
            Err(error) if is_unknown(&error) => {
                let nonce = link.nonce();
                let whole = command("EVAL", &self.source, keys, args, &nonce);
                link.ask(&whole, &nonce).await
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
        let nonce = link.nonce();
        let by_digest = command("EVALSHA", &self.digest, &[key], args, &nonce);
        match link.ask_and_wait(key, &by_digest, &nonce, &wait).await {
            Err(error) if is_unknown(&error) => {
                let nonce = link.nonce();
                let whole = command("EVAL", &self.source, &[key], args, &nonce);
                link.ask_and_wait(key, &whole, &nonce, &wait).await
            }
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, keys: &[&str], args: &[&[u8]], nonce: &Nonce) -> Cmd {
    let words = keys
        .iter()
        .map(|key| key.as_bytes())
        .chain(args.iter().copied());
    let bytes: usize = words.map(<[u8]>::len).sum();
    let mut cmd = Cmd::with_capacity(keys.len() + args.len() + 4, bytes + script.len() + 32);
    cmd.arg(name).arg(script).arg(keys.len());
    for key in keys {
        cmd.arg(*key);
    }
    for arg in args {
        cmd.arg(*arg);
    }
    cmd.arg(nonce.as_bytes());
    cmd
}

/// Whether the server does not know the script.
fn is_unknown(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(error) if error.contains("NOSCRIPT") || error.contains("NoScript"))
}
