//! Events about settings of the server with which state is lost silently.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::timeout;

use super::{guards::GUARD, shared::Shared};
use crate::transport::Transport;

impl Shared {
    /// Emits an event, once, for each setting of the server with which limits and records are lost silently. Skipped when the
    /// ACL does not allow the commands that tell; the answer to another command names no such setting, and has no effect.
    pub(super) async fn advise(&self) {
        let Some(live) = self.current.load_full() else {
            return;
        };
        let mut transport = live.transport.clone();
        let advice = async {
            let evicts = self.evicts(&mut transport).await;
            self.accepts_writes_alone(&mut transport).await || evicts
        };
        if !self.advised.load(Relaxed) && timeout(self.budget.limit(), advice).await == Ok(true) {
            self.advised.store(true, Relaxed);
        }
    }

    /// The server evicts keys when it is full.
    async fn evicts(&self, transport: &mut Transport) -> bool {
        let memory = transport.memory().await.unwrap_or_default();
        let Some(policy) = eviction_policy(&memory) else {
            return false;
        };
        tracing::warn!(
            target: "resilience",
            name = GUARD,
            redis = ?self.destination.endpoint,
            policy,
            "this Redis evicts keys when it is full: limits and idempotency records would be forgotten"
        );
        true
    }

    /// The master goes on accepting writes when it is cut off from its replicas, of which one takes over.
    async fn accepts_writes_alone(&self, transport: &mut Transport) -> bool {
        if !self.destination.is_watched_by_sentinels() {
            return false;
        }
        let least = transport.setting("min-replicas-to-write").await;
        let accepts = matches!(least.as_ref().map(Option::as_deref), Ok(Some("0")));
        if accepts {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                redis = ?self.destination.endpoint,
                "min-replicas-to-write is 0: a master that is cut off from its replicas accepts writes that are forgotten"
            );
        }
        accepts
    }
}

/// The policy by which a server with this `INFO memory` evicts keys that have not expired, if it does.
fn eviction_policy(memory: &str) -> Option<&str> {
    let value = |field: &str| {
        let mut lines = memory.lines();
        lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
    };
    let policy = value("maxmemory_policy")?;
    (value("maxmemory")? != "0" && policy != "noeviction").then_some(policy)
}
