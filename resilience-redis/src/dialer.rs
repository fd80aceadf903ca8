//! How connections are opened. The only file that knows how the client crate connects.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, PushInfo, RedisResult,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};

use crate::credentials::CredentialSource;

pub(crate) type OnPush = std::sync::Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Settings of every socket and login. Clones are copies.
#[derive(Clone)]
pub(crate) struct Dialer {
    /// Maximum time for connecting.
    pub(crate) connect: Duration,
    /// Maximum time for one answer of a node of a Cluster, whose client asks nodes for the map of slots by itself, and holds up
    /// all commands meanwhile.
    pub(crate) answer: Duration,
    #[cfg(feature = "tls")]
    pub(crate) tls: Tls,
    /// Asked for the login of servers, in place of the URL's.
    pub(crate) credentials: Option<CredentialSource>,
}

/// Certificates and keys, in PEM.
#[cfg(feature = "tls")]
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// Certificates of authorities, in place of the system's.
    pub(crate) roots: Option<Vec<u8>>,
    /// Certificate and key of this client.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Dialer {
    pub(crate) fn new(connect: Duration) -> Self {
        Self {
            connect,
            answer: connect,
            #[cfg(feature = "tls")]
            tls: Tls::default(),
            credentials: None,
        }
    }

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
            .response_timeout(self.answer)
            .tcp_settings(self.tcp())
            // Redirections are followed by `Transport`; a shard that is gone is not waited for, since callers have a budget.
            .retries(0);
        #[cfg(feature = "tls")]
        let builder = match self.tls.certificates() {
            Some(certificates) => builder.certs(certificates),
            None => builder,
        };
        builder.build()?.get_async_connection().await
    }

    fn client(&self, server: &ConnectionInfo) -> RedisResult<Client> {
        let server = server.clone().set_tcp_settings(self.tcp());
        #[cfg(feature = "tls")]
        if let Some(certificates) = self.tls.certificates() {
            return Client::build_with_tls(server, certificates);
        }
        Client::open(server)
    }

    fn tcp(&self) -> TcpSettings {
        TcpSettings::default()
            .set_nodelay(true)
            // Maximum time that a packet may stay unacknowledged before the kernel closes the connection.
            .set_user_timeout(self.connect * 2)
    }
}

#[cfg(feature = "tls")]
impl Tls {
    fn certificates(&self) -> Option<redis::TlsCertificates> {
        let client = self.client.clone();
        let client_tls = client.map(|(client_cert, client_key)| redis::ClientTlsConfig {
            client_cert,
            client_key,
        });
        let root_cert = self.roots.clone();
        (client_tls.is_some() || root_cert.is_some()).then_some(redis::TlsCertificates {
            client_tls,
            root_cert,
        })
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

pub(crate) fn invalid(rule: &'static str) -> redis::RedisError {
    (redis::ErrorKind::InvalidClientConfig, rule).into()
}
