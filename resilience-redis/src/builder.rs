//! Settings of a connection.

use std::{error::Error, fmt, time::Duration};

use resilience_core::InvalidConfig;
use tokio::runtime::Handle;

use crate::{
    Redis,
    connection::Settings,
    credentials::{CredentialSource, Credentials},
    dialer::Dialer,
    error::ConnectError,
    url::Endpoint,
};

/// The prefix that every service has which sets none.
pub(crate) const DEFAULT_PREFIX: &str = "resilience";

/// Settings of a [`Redis`] connection.
#[derive(Clone)]
#[must_use]
pub struct RedisBuilder {
    url: String,
    prefix: String,
    settings: Settings,
    sentinel_credentials: Option<Credentials>,
}

impl RedisBuilder {
    pub(crate) fn new(url: &str) -> Self {
        let connect = Duration::from_millis(500);
        Self {
            url: url.to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            settings: Settings {
                budget: Duration::from_millis(100),
                keepalive: Duration::from_secs(10),
                master_lease: Duration::from_secs(3),
                dialer: Dialer::new(connect),
            },
            sentinel_credentials: None,
        }
    }

    /// Prefix of every key and channel, 1 to 64 bytes: instances with the same prefix share state. Default `resilience`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Name of the service, of 1 to 53 bytes, in the prefix `resilience/NAME`: its instances share state with each other, and
    /// with no other service on this Redis.
    pub fn service(self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        self.prefix(format!("{DEFAULT_PREFIX}/{name}"))
    }

    /// Maximum time for the answer to one command, above zero; effectively up to an eighth less, because commands are
    /// watched together instead of by a timer each. Default 100 ms.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.settings.budget = budget;
        self
    }

    /// Maximum time for one attempt to connect, above zero. Default 500 ms.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.dialer.connect = timeout;
        self
    }

    /// Maximum time that a master is used after a majority of the sentinels in the URL last confirmed it, above zero. Default
    /// 3 s. Sentinel only.
    ///
    /// The sentinels are asked every second, or three times per lease if that is more often, and at once after each event
    /// of a failover. A process that is cut off from them together with the former master writes to that one for this
    /// time plus a [budget](Self::budget) at most. While no majority answers, Redis counts as unavailable, although the
    /// master may be well; a long lease tolerates longer outages of sentinels, and forgets more in a split brain. Name all
    /// sentinels in the URL: the majority is counted among those.
    pub const fn master_lease(mut self, lease: Duration) -> Self {
        self.settings.master_lease = lease;
        self
    }

    /// Time without commands after which a PING is sent, above zero: balancers and NAT gateways silently forget connections
    /// that are idle, mostly after some minutes. Default 10 s. A connection that was forgotten all the same is found and
    /// remade after this time and a [budget](Self::budget).
    pub const fn keepalive(mut self, interval: Duration) -> Self {
        self.settings.keepalive = interval;
        self
    }

    /// Asks `source` for the login before each connection is opened, in place of the URL's: for passwords and tokens (IAM)
    /// that change. [`Credentials::renew_after`] is for tokens that end.
    ///
    /// It has ten seconds; an error of it, which the status shows, counts as a failed attempt to connect.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use resilience_redis::{Credentials, Redis};
    /// # async fn token() -> Result<String, std::io::Error> { Ok(String::new()) }
    ///
    /// # async fn connect() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let redis = Redis::builder("rediss://redis.internal:6379")
    ///     .credentials(|| async {
    ///         let token = Credentials::new("app", token().await?);
    ///         Ok::<_, std::io::Error>(token.renew_after(Duration::from_secs(600)))
    ///     })
    ///     .connect()?;
    /// # let _ = redis; Ok(()) }
    /// ```
    pub fn credentials<F, E>(mut self, source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.settings.dialer.credentials = Some(CredentialSource::new(source));
        self
    }

    /// The login of the sentinels, which is not that of the servers. Default: the parameters `sentinel_username` and
    /// `sentinel_password` of the URL, or none.
    pub fn sentinel_credentials(mut self, credentials: Credentials) -> Self {
        self.sentinel_credentials = Some(credentials);
        self
    }

    /// Certificates of authorities, in PEM, that a server's certificate must lead back to; no others are trusted. Default:
    /// the system's.
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.settings.dialer.tls.roots = Some(pem.into());
        self
    }

    /// The certificate by which servers and sentinels know this client, and its key, in PEM. Default: none.
    #[cfg(feature = "tls")]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.settings.dialer.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// Starts connecting; see [`Redis::connect`].
    ///
    /// # Errors
    /// [`ConnectError`] when the URL or a setting cannot work, and outside of a tokio runtime.
    pub fn connect(self) -> Result<Redis, ConnectError> {
        self.check()?;
        let mut endpoint = Endpoint::parse(&self.url)?;
        if let (Endpoint::Sentinel(group), Some(credentials)) =
            (&mut endpoint, &self.sentinel_credentials)
        {
            group.log_in(credentials);
        }
        let runtime = Handle::try_current().map_err(|_| InvalidConfig::no_runtime("connect"))?;
        Ok(Redis::start(endpoint, &self.prefix, self.settings, runtime))
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        let settings = &self.settings;
        for (field, value) in [
            ("budget", settings.budget),
            ("connect_timeout", settings.dialer.connect),
            ("keepalive", settings.keepalive),
            ("master_lease", settings.master_lease),
        ] {
            if value.is_zero() {
                return Err(InvalidConfig::new(field, value, "must be above zero"));
            }
        }
        if self.prefix.strip_prefix(DEFAULT_PREFIX) == Some("/") {
            return Err(InvalidConfig::new("service", "", "must not be empty"));
        }
        if self.prefix.is_empty() || self.prefix.len() > 64 {
            let rule = "must have 1 to 64 bytes";
            return Err(InvalidConfig::new("prefix", &self.prefix, rule));
        }
        Ok(())
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("budget", &self.settings.budget)
            .field("connect_timeout", &self.settings.dialer.connect)
            .field("keepalive", &self.settings.keepalive)
            .field("master_lease", &self.settings.master_lease)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    const URL: &str = "redis://127.0.0.1:1";

    fn boxed(error: ConnectError) -> Box<dyn Error + Send + Sync + 'static> {
        error.into()
    }

    #[test]
    fn connecting_outside_of_a_runtime_is_refused_with_the_remedy() {
        for refused in [Redis::connect(URL), Redis::builder(URL).connect()] {
            let refused = refused.expect_err("there is no runtime");
            let ConnectError::Config(config) = &refused else {
                panic!("{refused:?}");
            };
            assert_eq!(config.field(), "connect");
            let text = boxed(refused).to_string();
            assert!(text.contains("`tokio::runtime::Handle::enter`"), "{text}");
        }
    }

    #[test]
    fn what_cannot_work_is_told_of_by_type() {
        let url = Redis::connect("http://127.0.0.1").expect_err("another scheme");
        assert!(matches!(url, ConnectError::Url(_)), "{url}");
        let zero = Redis::builder(URL).budget(Duration::ZERO);
        for (refused, field) in [(zero, "budget"), (Redis::builder(URL).prefix(""), "prefix")] {
            match refused.connect() {
                Err(ConnectError::Config(config)) => assert_eq!(config.field(), field),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The second connection runs where the first one does.
    #[test]
    fn a_durable_store_can_be_made_on_any_thread() {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let redis = Redis::connect(URL).expect("a good URL");
        drop(entered);
        let within = Duration::from_millis(50);
        assert!(redis.idempotency().durable(1, within).is_ok());
        let ended = runtime.block_on(redis.shutdown(Duration::from_secs(10)));
        assert_eq!(ended, Ok(()));
    }
}
