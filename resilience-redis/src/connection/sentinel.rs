//! The sentinels of a URL, asked which server is the master.
//!
//! One task and one connection for each: it asks at an interval, and at once after an event of a failover or when a
//! connection to the master is in trouble. [`Quorum`] decides what the answers add up to.
//!
//! # References
//! [Guidelines for Redis clients with support for Sentinel](https://redis.io/docs/latest/develop/reference/sentinel-clients/),
//! and the events of [Sentinel](https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/).

use std::{collections::HashMap, sync::Arc, time::Duration};

use redis::{
    ConnectionInfo, PushInfo, PushKind, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Lifetime,
    quorum::{Quorum, View},
    reconnect::{PROVEN, backoff, opened_within},
};
use crate::{
    dialer::{Dialer, OnPush},
    url::{Address, Endpoint, SentinelGroup},
};

/// Longest time between two questions.
const INTERVAL: Duration = Duration::from_secs(1);
/// What sentinels publish of failovers: that one begins, its steps, its end, the server that was promoted, and the switch. One
/// pattern per command.
const EVENTS: [&str; 3] = ["*failover*", "+promoted-slave", "+switch-master"];

/// The sentinels of a group.
pub(super) struct Sentinels {
    quorum: watch::Sender<Quorum>,
    /// Changes when they should be asked before the interval is over.
    asked: watch::Sender<()>,
}

impl Sentinels {
    /// Starts asking the sentinels of `endpoint`, if it has any. Each answer counts for `lease`.
    pub(super) fn start(
        endpoint: &Endpoint,
        dialer: &Dialer,
        lease: Duration,
        lifetime: &Lifetime,
    ) -> Arc<Self> {
        let group = match endpoint {
            Endpoint::Sentinel(group) => Some(group),
            _ => None,
        };
        let count = group.map_or(0, |group| group.sentinels.len());
        let sentinels = Arc::new(Self {
            quorum: watch::Sender::new(Quorum::new(count, lease)),
            asked: watch::Sender::new(()),
        });
        for number in 0..count {
            let sentinel = Sentinel {
                number,
                group: group.expect("it has sentinels").clone(),
                dialer: dialer.clone(),
                interval: INTERVAL.min(lease / 3),
                all: Arc::clone(&sentinels),
            };
            let closing = lifetime.closing.clone();
            lifetime.spawn(async move {
                closing.run_until_cancelled(sentinel.keep_asking()).await;
            });
        }
        sentinels
    }

    /// Asks all of them now.
    pub(super) fn ask(&self) {
        self.asked.send_replace(());
    }

    /// Waits until they confirm a master.
    pub(super) async fn master(&self) -> Address {
        self.when(|master| master.ok().cloned()).await
    }

    /// Waits until they no longer confirm the master in use, and returns why.
    pub(super) async fn replaced(&self, is_used: impl Fn(&Address) -> bool) -> String {
        self.when(|master| match master {
            Ok(master) if is_used(master) => None,
            Ok((host, port)) => Some(format!("the sentinels name another master: {host}:{port}")),
            Err(why) => Some(why),
        })
        .await
    }

    /// Why they confirm no master at the moment.
    pub(super) fn doubt(&self) -> Option<String> {
        self.quorum.borrow().master(Instant::now()).err()
    }

    /// Waits for a state of the quorum of which `decide` makes something.
    async fn when<T>(&self, decide: impl Fn(Result<&Address, String>) -> Option<T>) -> T {
        let mut quorum = self.quorum.subscribe();
        loop {
            let (decided, changes) = {
                let (quorum, now) = (quorum.borrow_and_update(), Instant::now());
                (decide(quorum.master(now)), quorum.changes_at(now))
            };
            if let Some(decided) = decided {
                return decided;
            }
            let expiry = async {
                match changes {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is this value's own.
                _ = quorum.changed() => {}
                () = expiry => {}
            }
        }
    }
}

/// One of them.
struct Sentinel {
    number: usize,
    group: SentinelGroup,
    dialer: Dialer,
    interval: Duration,
    all: Arc<Sentinels>,
}

impl Sentinel {
    async fn keep_asking(self) {
        let mut failures: u32 = 0;
        loop {
            let started = Instant::now();
            let why = match self.connect().await {
                Ok((conn, event)) => self.ask_until_silent(conn, &event).await,
                Err(why) => why,
            };
            let proven = started.elapsed() >= PROVEN;
            failures = if proven {
                0
            } else {
                failures.saturating_add(1)
            };
            let why = format!("{}: {why}", self.info().addr());
            self.all.quorum.send_modify(|quorum| quorum.failed(why));
            sleep(backoff(failures)).await;
        }
    }

    fn info(&self) -> &ConnectionInfo {
        &self.group.sentinels[self.number]
    }

    /// Opens a connection; the `Notify` fires after every event about the service, and when the connection is lost.
    async fn connect(&self) -> Result<(MultiplexedConnection, Arc<Notify>), String> {
        let event = Arc::new(Notify::new());
        let on_push = on_push(&self.group.service, &event);
        let opening = self.dialer.single(self.info(), on_push);
        let mut conn = opened_within(&self.dialer, opening).await?;
        for pattern in EVENTS {
            match timeout(self.dialer.connect, conn.psubscribe(pattern)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(SILENT.into()),
            }
        }
        Ok((conn, event))
    }

    /// Asks again and again. One question at a time, and none after one without an answer: answers are in no doubt.
    async fn ask_until_silent(&self, mut conn: MultiplexedConnection, event: &Notify) -> String {
        let mut asked = self.all.asked.subscribe();
        loop {
            let at = Instant::now();
            let answer = timeout(self.dialer.connect, view(&mut conn, &self.group.service)).await;
            let view = match answer {
                Ok(Ok(view)) => view,
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return SILENT.into(),
            };
            let answered = |quorum: &mut Quorum| quorum.answered(self.number, at, view);
            self.all.quorum.send_modify(answered);
            tokio::select! {
                () = sleep(self.interval) => {}
                () = event.notified() => {}
                // The sender is held by `all`.
                _ = asked.changed() => {}
            }
        }
    }
}

const SILENT: &str = "no answer";

fn on_push(service: &str, event: &Arc<Notify>) -> OnPush {
    let (service, event) = (service.to_owned(), Arc::clone(event));
    Arc::new(move |push: PushInfo| match push.kind {
        PushKind::Disconnection => event.notify_one(),
        PushKind::PMessage => {
            // `pattern channel message`; every message names the service, as one of its words.
            if let Some(Value::BulkString(message)) = push.data.last()
                && message
                    .split(|byte| *byte == b' ')
                    .any(|word| word == service.as_bytes())
            {
                event.notify_one();
            }
        }
        _ => {}
    })
}

/// Asks a sentinel which server is the master. The two commands arrive in one piece, and are executed together.
async fn view(conn: &mut MultiplexedConnection, service: &str) -> RedisResult<View> {
    let mut both = redis::pipe();
    both.cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(service);
    both.cmd("SENTINEL").arg("MASTER").arg(service);
    let answers = conn.req_packed_commands(&both, 0, 2).await?;
    let mut answers = answers.into_iter().map(Value::extract_error);
    let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
    let (address, master) = (next()?, next()?);
    read(address, master)
}

/// The leader of a failover names the promoted server as the address while it is a replica to `SENTINEL MASTER` still.
fn read(address: Value, master: Value) -> RedisResult<View> {
    let address: Address = redis::from_redis_value(address)?;
    let master: HashMap<String, String> = redis::from_redis_value(master)?;
    let field = |name: &str| master.get(name).map_or("", String::as_str);
    let is_old = field("ip") == address.0 && field("port") == address.1.to_string();
    let is_promoting = field("flags")
        .split(',')
        .any(|flag| flag == "failover_in_progress");
    Ok(View {
        failing_over: is_old && is_promoting,
        epoch: field("config-epoch").parse().unwrap_or(0),
        master: address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn master(port: &str, flags: &str) -> Value {
        let fields = [
            ("ip", "10.0.0.1"),
            ("port", port),
            ("flags", flags),
            ("config-epoch", "7"),
        ];
        Value::Map(fields.map(|(name, value)| (text(name), text(value))).into())
    }

    fn address() -> Value {
        Value::Array(vec![text("10.0.0.1"), text("6379")])
    }

    #[test]
    fn a_failover_is_in_progress_until_the_sentinel_names_the_promoted_server() {
        for (port, flags, failing_over) in [
            ("6379", "master", false),
            ("6379", "master,disconnected", false),
            ("6379", "master,failover_in_progress", true),
            ("6380", "master,failover_in_progress", false),
        ] {
            let view = read(address(), master(port, flags)).expect("a view");
            assert_eq!(
                (view.epoch, view.failing_over),
                (7, failing_over),
                "{flags}"
            );
            assert_eq!(view.master, ("10.0.0.1".to_owned(), 6379));
        }
    }

    #[test]
    fn a_sentinel_that_does_not_know_the_service_says_nothing_of_it() {
        assert!(read(Value::Nil, master("6379", "master")).is_err());
    }
}
