//! Who a connection logs in as.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use redis::ConnectionInfo;
use tokio::time::timeout;

/// Longest time for a source of credentials to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// User name and password of a login. Neither is ever shown.
#[derive(Clone)]
#[must_use]
pub struct Credentials {
    username: Option<String>,
    password: String,
    renew_after: Option<Duration>,
}

impl Credentials {
    /// Credentials of an ACL user.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: Some(username.into()),
            ..Self::password(password)
        }
    }

    /// The password of the default user.
    pub fn password(password: impl Into<String>) -> Self {
        Self {
            username: None,
            password: password.into(),
            renew_after: None,
        }
    }

    /// Time after which connections are remade with new credentials, before these end: for tokens of a limited life. The
    /// old connection stays in use meanwhile. Default: never, a connection keeps its login.
    pub const fn renew_after(mut self, time: Duration) -> Self {
        self.renew_after = Some(time);
        self
    }

    pub(crate) const fn renewal(&self) -> Option<Duration> {
        self.renew_after
    }

    /// The same server, with this login.
    pub(crate) fn apply(&self, server: ConnectionInfo) -> ConnectionInfo {
        let settings = server.redis_settings().clone().set_password(&self.password);
        // An empty name is that of the default user.
        let name = self.username.as_deref().unwrap_or("default");
        server.set_redis_settings(settings.set_username(name))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("renew_after", &self.renew_after)
            .finish_non_exhaustive()
    }
}

type Answer = Result<Credentials, Box<dyn Error + Send + Sync>>;

/// Asked for credentials before each connection is opened.
#[derive(Clone)]
pub(crate) struct CredentialSource(Arc<dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync>);

impl CredentialSource {
    pub(crate) fn new<F, E>(source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self(Arc::new(move || {
            let answer = source();
            Box::pin(async move { answer.await.map_err(Into::into) })
        }))
    }

    pub(crate) async fn ask(&self) -> Result<Credentials, String> {
        match timeout(PATIENCE, (self.0)()).await {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(error)) => Err(format!("no credentials: {error}")),
            Err(_) => Err(format!("no credentials within {PATIENCE:?}")),
        }
    }
}
