//! How connections are opened. The only file that knows how the client crate connects.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, PushInfo, RedisError, RedisResult,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};

pub(crate) type OnPush = std::sync::Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Settings of every socket. Clones are copies.
#[derive(Clone)]
pub(crate) struct Dialer {
    /// Maximum time for connecting.
    pub(crate) connect: Duration,
    /// Maximum time that a packet may stay unacknowledged before the kernel closes the connection.
    pub(crate) unacknowledged: Duration,
    pub(crate) roots: Option<RootCertificates>,
}

/// Certificates of authorities, in PEM, in place of the system's.
#[derive(Clone)]
pub(crate) struct RootCertificates(
    #[cfg_attr(not(feature = "tls"), allow(dead_code))] pub(crate) Vec<u8>,
);

impl Dialer {
    /// Opens a connection to one server.
    pub(crate) async fn single(
        &self,
        server: &ConnectionInfo,
        on_push: OnPush,
    ) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            // Every command has a timeout of this crate's own.
            .set_response_timeout(None)
            .set_push_sender(sender(on_push));
        self.client(server)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Opens connections to a Cluster, some of whose nodes these are.
    #[cfg(feature = "cluster")]
    pub(crate) async fn cluster(
        &self,
        nodes: &[ConnectionInfo],
    ) -> RedisResult<redis::cluster_async::ClusterConnection> {
        let builder = redis::cluster::ClusterClient::builder(nodes.to_vec())
            .use_protocol(redis::ProtocolVersion::RESP3)
            .connection_timeout(self.connect)
            .tcp_settings(self.tcp())
            // Enough for redirections; a shard that is gone is not waited for here, since callers have a budget.
            .retries(2);
        #[cfg(feature = "tls")]
        let builder = match &self.roots {
            Some(roots) => builder.certs(roots.certificates()),
            None => builder,
        };
        builder.build()?.get_async_connection().await
    }

    fn client(&self, server: &ConnectionInfo) -> RedisResult<Client> {
        let server = server.clone().set_tcp_settings(self.tcp());
        match &self.roots {
            None => Client::open(server),
            #[cfg(feature = "tls")]
            Some(roots) => Client::build_with_tls(server, roots.certificates()),
            #[cfg(not(feature = "tls"))]
            Some(_) => Err(invalid("TLS needs the feature `tls`")),
        }
    }

    fn tcp(&self) -> TcpSettings {
        TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(self.unacknowledged)
    }
}

#[cfg(feature = "tls")]
impl RootCertificates {
    fn certificates(&self) -> redis::TlsCertificates {
        redis::TlsCertificates {
            client_tls: None,
            root_cert: Some(self.0.clone()),
        }
    }
}

fn sender(
    on_push: OnPush,
) -> impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static {
    move |push| {
        on_push(push);
        Ok(())
    }
}

pub(crate) fn invalid(rule: &'static str) -> RedisError {
    (redis::ErrorKind::InvalidClientConfig, rule).into()
}
