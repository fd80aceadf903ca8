//! Where the connections of a process lead.

use std::sync::Arc;

use super::sentinel::Sentinels;
use crate::{dialer::Dialer, transport::Server, url::Endpoint};

/// The servers of a URL, and how connections to them are opened. Clones share the connections to the sentinels.
#[derive(Clone)]
pub(super) struct Destination {
    pub(super) endpoint: Endpoint,
    pub(super) dialer: Dialer,
    /// None, unless the endpoint is a Sentinel group.
    pub(super) sentinels: Arc<Sentinels>,
}

impl Destination {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.endpoint, Endpoint::Cluster(_))
    }

    pub(super) fn is_watched_by_sentinels(&self) -> bool {
        matches!(self.endpoint, Endpoint::Sentinel(_))
    }

    /// The server to connect to now. Under Sentinel, waits until the sentinels confirm a master.
    pub(super) async fn find(&self) -> Server {
        match &self.endpoint {
            Endpoint::Single(server) => Server::Single(server.clone()),
            Endpoint::Cluster(nodes) => Server::Cluster(nodes.clone()),
            Endpoint::Sentinel(group) => {
                Server::Single(group.server(&self.sentinels.master().await))
            }
        }
    }

    /// Returns when `server` must not be used any longer, and why: the sentinels do not confirm it.
    pub(super) async fn left(&self, server: &Server) -> String {
        match (&self.endpoint, server) {
            (Endpoint::Sentinel(group), Server::Single(used)) => {
                let is_used = |master: &_| group.server(master).addr() == used.addr();
                self.sentinels.replaced(is_used).await
            }
            _ => std::future::pending().await,
        }
    }
}
