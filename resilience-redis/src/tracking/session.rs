//! Tracking on one connection.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use futures_util::future::BoxFuture;
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value};
use resilience_core::Pattern;

use super::{coverage::Member, observers::Observers};
use crate::{
    connection::{GUARD, Session},
    error::{code, is_broken},
    transport::Transport,
    url::Endpoint,
};

/// What all connections of one [`Redis`](crate::Redis) that track have in common.
pub(super) struct Kind {
    pub(super) observers: Arc<Observers>,
    /// For events.
    pub(super) endpoint: Endpoint,
    /// The keys whose changes are pushed, whether they were read or not. `None`: those that were read over the connection.
    pub(super) prefix: Option<String>,
    /// The channel that the connection is subscribed to.
    pub(super) channel: String,
    told_of_refusal: AtomicBool,
    told_of_unbounded: AtomicBool,
}

impl Kind {
    pub(super) fn new(
        observers: &Arc<Observers>,
        endpoint: Endpoint,
        prefix: Option<String>,
        channel: String,
    ) -> Self {
        Self {
            observers: Arc::clone(observers),
            endpoint,
            prefix,
            channel,
            told_of_refusal: AtomicBool::new(false),
            told_of_unbounded: AtomicBool::new(false),
        }
    }

    /// Emits an event once, until tracking works again.
    fn tell_of_refusal(&self, error: &RedisError) {
        if !self.told_of_refusal.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                pattern = Pattern::Cache.as_str(),
                redis = ?self.endpoint,
                reason = %error,
                "Redis does not report changes: processes keep cached values for no longer than `max_stale`"
            );
        }
    }

    fn tell_of_unbounded(&self, error: &RedisError) {
        if !self.told_of_unbounded.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                pattern = Pattern::Cache.as_str(),
                redis = ?self.endpoint,
                channel = self.channel,
                reason = %error,
                "Redis does not bound what it keeps for a process that has stopped reading changes"
            );
        }
    }
}

/// The use of one connection.
pub(super) struct TrackingSession {
    kind: Arc<Kind>,
    member: Member,
    /// Whether the connection that was prepared last tracks.
    tracks: AtomicBool,
}

impl TrackingSession {
    pub(super) fn new(kind: &Arc<Kind>, member: Member) -> Self {
        Self {
            kind: Arc::clone(kind),
            member,
            tracks: AtomicBool::new(false),
        }
    }

    /// Turns tracking on. Whether the server does that.
    async fn track(&self, transport: &mut Transport) -> RedisResult<bool> {
        let kind = &self.kind;
        if let Err(error) = transport.track(kind.prefix.as_deref()).await {
            if is_transient(&error) {
                return Err(error);
            }
            kind.tell_of_refusal(&error);
            return Ok(false);
        }
        kind.told_of_refusal.store(false, Relaxed);
        // The server bounds what it keeps for clients that are subscribed, and for no others.
        match transport.subscribe(&kind.channel).await {
            Err(error) if is_transient(&error) => return Err(error),
            Err(error) => kind.tell_of_unbounded(&error),
            Ok(()) => kind.told_of_unbounded.store(false, Relaxed),
        }
        Ok(true)
    }
}

impl Session for TrackingSession {
    fn prepare<'a>(&'a self, transport: &'a mut Transport) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let tracks = self.track(transport).await;
            let tracks = tracks.map_err(|error| error.to_string())?;
            self.tracks.store(tracks, Relaxed);
            Ok(())
        })
    }

    fn began(&self, number: u64) {
        if self.tracks.load(Relaxed) {
            let observers = &self.kind.observers;
            observers.update(|coverage| coverage.began(self.member, number));
        }
    }

    fn ended(&self, number: u64) {
        let observers = &self.kind.observers;
        observers.update(|coverage| coverage.ended(self.member, number));
    }

    fn pushed(&self, push: &PushInfo) {
        if push.kind != PushKind::Invalidate {
            return;
        }
        match &push.data[..] {
            [Value::Array(keys)] => {
                for key in keys {
                    match key {
                        Value::BulkString(key) => self.kind.observers.changed(key),
                        // Not known which.
                        _ => self.kind.observers.cleared(),
                    }
                }
            }
            // Everything was removed.
            _ => self.kind.observers.cleared(),
        }
    }
}

/// Whether another attempt may succeed where this one failed.
fn is_transient(error: &RedisError) -> bool {
    let for_now = matches!(
        code(error),
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN")
    );
    for_now || is_broken(error) || error.is_timeout() || error.is_io_error()
}
