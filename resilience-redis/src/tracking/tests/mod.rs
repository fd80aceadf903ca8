//! Real servers, raw commands, and the smallest cache in a process that is right.

mod faults;
#[cfg(feature = "cluster")]
mod nodes;
mod pushes;
mod races;

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Value;
use resilience_core::cache::store::Observer;
use resilience_tests::until::eventually;
use tokio::runtime::Handle;

use super::{Tracking, id};
use crate::{
    CommandError,
    connection::{Connection, Settings},
    dialer::Dialer,
    url::Endpoint,
};

const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "resilience";

/// A key as the stores make them.
fn key(name: impl std::fmt::Display) -> String {
    format!("{{{PREFIX}:cache:test:{name}}}")
}

/// The values that a process keeps, by the number of their key.
#[derive(Default)]
struct Local(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    is_told: bool,
    /// Rises with each loss, return and clearing.
    epoch: u64,
    changes: HashMap<u64, u64>,
    values: HashMap<u64, Option<String>>,
    lost: usize,
    restored: usize,
    cleared: usize,
}

/// What was true before a value was asked for.
type Ticket = (u64, u64);

impl Local {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(&self, id: u64) -> Ticket {
        let state = self.state();
        (state.epoch, state.changes.get(&id).copied().unwrap_or(0))
    }

    fn insert(&self, id: u64, ticket: Ticket, value: Option<String>) {
        let mut state = self.state();
        let changes = state.changes.get(&id).copied().unwrap_or(0);
        if state.is_told && ticket == (state.epoch, changes) {
            state.values.insert(id, value);
        }
    }

    /// The value that may be served without asking Redis.
    fn get(&self, key: &str) -> Option<Option<String>> {
        self.state().values.get(&id(key.as_bytes())).cloned()
    }

    fn turn(&self, turn: impl FnOnce(&mut State)) {
        let mut state = self.state();
        state.epoch += 1;
        state.values.clear();
        turn(&mut state);
    }
}

impl Observer for Local {
    fn changed(&self, id: u64) {
        let mut state = self.state();
        *state.changes.entry(id).or_default() += 1;
        state.values.remove(&id);
    }

    fn cleared(&self) {
        self.turn(|state| state.cleared += 1);
    }

    fn lost(&self) {
        self.turn(|state| {
            assert!(state.is_told, "lost twice");
            state.is_told = false;
            state.lost += 1;
        });
    }

    fn restored(&self) {
        self.turn(|state| {
            assert!(!state.is_told, "restored twice");
            state.is_told = true;
            state.restored += 1;
        });
    }
}

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
        let settings = Settings {
            budget,
            keepalive: Duration::from_millis(200),
            master_lease: Duration::from_secs(1),
            dialer: Dialer::new(Duration::from_secs(2)),
        };
        let endpoint = Endpoint::parse(url).expect("a good URL");
        let connection = Arc::new(Connection::start(endpoint, settings, Handle::current()));
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

    async fn raw(&self, words: &[&str]) -> Result<Value, CommandError> {
        self.tracking.reads(&self.connection).raw(words).await
    }

    /// The value of a key: the local one, or what Redis answers, which is then kept.
    async fn read(&self, key: &str) -> Result<Option<String>, CommandError> {
        if let Some(value) = self.local.get(key) {
            return Ok(value);
        }
        let id = id(key.as_bytes());
        let ticket = self.local.ticket(id);
        let value = text(self.raw(&["GET", key]).await?);
        self.local.insert(id, ticket, value.clone());
        Ok(value)
    }

    /// Reads a key until this value is kept.
    async fn keeps(&self, key: &str, value: Option<&str>) {
        eventually(&format!("{value:?} is kept"), SOON, async || {
            let _ = self.read(key).await;
            self.local.get(key).is_some_and(|it| it.as_deref() == value)
        })
        .await;
    }

    /// Waits until a value is not kept any longer.
    async fn forgets(&self, what: &str, key: &str) {
        let gone = async || self.local.get(key).is_none();
        eventually(what, SOON, gone).await;
    }
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
