//! Real servers, raw commands, and the smallest cache in a process that is right.

mod faults;
#[cfg(feature = "cluster")]
mod nodes;
mod pushes;
mod races;

use std::{any::Any, sync::Arc, time::Duration};

use redis::Value;
use resilience_tests::{local_values::LocalValues, redis::RedisServer, until::eventually};
use tokio::runtime::Handle;

use super::Tracking;
use crate::{
    CommandError,
    connection::{Connection, Settings},
    dialer::Dialer,
    keys,
    url::Endpoint,
};

const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "resilience";

/// A key as the stores make them.
fn key(name: impl std::fmt::Display) -> String {
    format!("{{{PREFIX}:cache:test:{name}}}")
}

/// What a process keeps: `None` of keys that do not exist.
type Local = LocalValues<Option<String>>;

/// A process that reads through its local values.
struct Process {
    connection: Arc<Connection>,
    tracking: Arc<Tracking>,
    local: Arc<Local>,
    _joined: Arc<dyn Any + Send + Sync>,
}

impl Process {
    /// With the settings of tests, which give up sooner than the defaults.
    fn start(url: &str) -> Self {
        Self::with_budget(url, Duration::from_millis(500))
    }

    fn with_budget(url: &str, budget: Duration) -> Self {
        Self::over(connection(url, budget))
    }

    fn over(connection: Arc<Connection>) -> Self {
        let tracking = Arc::<Tracking>::default();
        let local = Arc::<Local>::default();
        let joined = observe(&tracking, &connection, &local);
        Self {
            connection,
            tracking,
            local,
            _joined: joined,
        }
    }

    async fn told(url: &str) -> Self {
        let process = Self::start(url);
        process.is_told().await;
        process
    }

    /// Waits until changes are told.
    async fn is_told(&self) {
        eventually("changes are told", SOON, async || {
            self.local.state().is_told
        })
        .await;
    }

    /// Has the server kill the connection over which it tells of changes, and waits until that is noticed.
    async fn loses_a_connection(&self, server: &RedisServer) {
        self.is_told().await;
        let before = self.local.state().lost;
        eventually("a connection is lost", SOON, async || {
            let killed = server.command("CLIENT KILL TYPE pubsub");
            killed != "0" || self.local.state().lost > before
        })
        .await;
        let is_noticed = async || self.local.state().lost > before;
        eventually("the loss is noticed", SOON, is_noticed).await;
    }

    async fn raw(&self, words: &[&str]) -> Result<Value, CommandError> {
        self.tracking.reads(&self.connection).raw(words).await
    }

    /// The value of a key that may be served without asking Redis.
    fn kept(&self, key: &str) -> Option<Option<String>> {
        self.local.get(keys::hash(key))
    }

    /// The value of a key: the local one, or what Redis answers, which is then kept.
    async fn read(&self, key: &str) -> Result<Option<String>, CommandError> {
        let id = keys::hash(key);
        if let Some(value) = self.local.get(id) {
            return Ok(value);
        }
        let ticket = self.local.ticket(id);
        let value = text(self.raw(&["GET", key]).await?);
        self.local.insert(id, ticket, value.clone());
        Ok(value)
    }

    /// Reads a key until this value is kept.
    async fn keeps(&self, key: &str, value: Option<&str>) {
        eventually(&format!("{value:?} is kept"), SOON, async || {
            let _ = self.read(key).await;
            self.kept(key).is_some_and(|it| it.as_deref() == value)
        })
        .await;
    }

    /// Waits until a value is not kept any longer.
    async fn forgets(&self, what: &str, key: &str) {
        let gone = async || self.kept(key).is_none();
        eventually(what, SOON, gone).await;
    }
}

fn connection(url: &str, budget: Duration) -> Arc<Connection> {
    let settings = Settings {
        budget,
        keepalive: Duration::from_millis(200),
        master_lease: Duration::from_secs(1),
        dialer: Dialer::new(Duration::from_secs(2)),
    };
    let endpoint = Endpoint::parse(url).expect("a good URL");
    Arc::new(Connection::start(endpoint, settings, Handle::current()))
}

fn observe(
    tracking: &Arc<Tracking>,
    connection: &Arc<Connection>,
    local: &Arc<Local>,
) -> Arc<dyn Any + Send + Sync> {
    let observer = Arc::downgrade(local);
    Tracking::observe(tracking, connection, PREFIX, observer)
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8(bytes).expect("text")),
        _ => None,
    }
}
