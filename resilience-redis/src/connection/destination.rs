//! Where the connections of a process lead.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{reconnect::backoff, sentinel::Sentinels};
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
            Endpoint::Single(server) => Server::Single(Box::new(server.clone())),
            Endpoint::Cluster(nodes) => Server::Cluster(nodes.clone()),
            Endpoint::Sentinel(group) => {
                Server::Single(Box::new(group.server(&self.sentinels.master().await)))
            }
        }
    }

    /// The same server with the login of now, and the time after which that is to be renewed.
    pub(super) async fn log_in(
        &self,
        server: Server,
    ) -> Result<(Server, Option<Duration>), String> {
        let Some(source) = &self.dialer.credentials else {
            return Ok((server, None));
        };
        let login = source.ask().await?;
        let server = match server {
            Server::Single(server) => Server::Single(Box::new(login.apply(*server))),
            Server::Cluster(nodes) => {
                let nodes = nodes.into_iter().map(|node| login.apply(node));
                Server::Cluster(nodes.collect())
            }
        };
        Ok((server, login.renewal()))
    }

    /// Returns when new credentials can be had, `after` a time.
    pub(super) async fn renewed(&self, after: Option<Duration>) {
        let (Some(after), Some(source)) = (after, &self.dialer.credentials) else {
            return std::future::pending().await;
        };
        sleep(after).await;
        for failures in 0.. {
            let Err(why) = source.ask().await else {
                return;
            };
            if failures == 0 {
                tracing::warn!(target: "resilience", redis = ?self.endpoint, reason = %why, "credentials for Redis cannot be renewed");
            }
            sleep(backoff(failures)).await;
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
