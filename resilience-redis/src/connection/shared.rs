//! What callers and the supervising task of a connection share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::Budget, clock::ServerClock, destination::Destination, guards::Guards, nonce::Nonces,
    pubsub::Pubsub, session::Session, status::Status,
};
use crate::transport::Transport;

/// State of a connection; does not keep the [`Connection`](super::Connection) itself alive.
pub(super) struct Shared {
    pub(super) destination: Destination,
    pub(super) budget: Budget,
    /// Time without commands after which a PING is sent.
    pub(super) keepalive: Duration,
    pub(super) guards: Guards,
    pub(super) current: ArcSwapOption<Live>,
    pub(super) nonces: Nonces,
    /// What the connection is for beside commands.
    pub(super) session: Option<Arc<dyn Session>>,
    /// Follows when the connection is remade, which may lead to another server.
    pub(super) pubsub: Arc<Pubsub>,
    pub(super) clock: ServerClock,
    pub(super) status: watch::Sender<Status>,
    /// Timeouts in a row.
    pub(super) timed_out: AtomicU32,
    /// The newest connection that is known to be lost, by number.
    pub(super) lost: AtomicU64,
    /// The newest connection whose server refuses what another one may accept, by number.
    pub(super) refused: AtomicU64,
    /// Whether events about the settings of the server were emitted.
    pub(super) advised: AtomicBool,
    /// Wakes the task that asks a Cluster which master holds which slots.
    pub(super) topology: Notify,
    /// Wakes the supervising task when `timed_out`, `lost` or `refused` should be examined.
    pub(super) trouble: Notify,
    pub(super) closing: CancellationToken,
}

impl Shared {
    /// Ends the connection for good.
    pub(super) fn end(&self, why: &str) {
        self.withdraw();
        self.status.send_replace(Status::Down(why.into()));
    }
}

impl Shared {
    /// Takes a new connection into use, in place of the former one.
    pub(super) fn publish(&self, live: Live) {
        self.end_session();
        let number = live.number;
        self.current.store(Some(Arc::new(live)));
        if let Some(session) = &self.session {
            session.began(number);
        }
    }

    /// Takes the connection out of use.
    pub(super) fn withdraw(&self) {
        self.end_session();
        self.current.store(None);
    }

    /// What relies on the connection in use ends before that does: callers may use another one afterwards.
    fn end_session(&self) {
        if let Some(session) = &self.session
            && let Some(live) = &*self.current.load()
        {
            session.ended(live.number);
        }
    }
}

/// Ends the connection with the task that keeps it alive, which ends early when its runtime does.
pub(super) struct Ended(pub(super) Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if !self.0.closing.is_cancelled() {
            self.0.end("its runtime has stopped");
        }
    }
}

/// A connection and its number: trouble on an old one is not taken for trouble on its successor.
pub(super) struct Live {
    pub(super) transport: Transport,
    pub(super) number: u64,
    pub(super) since: Instant,
}
