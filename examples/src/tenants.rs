//! A greedy tenant at the door of a service that has several instances.
//!
//! The service limits the calls per second of each tenant. One tenant sends four times as many, to all instances in
//! turn, as a load balancer deals them out; another stays within what it may. Where every instance has a limit of its
//! own, the greedy one is admitted once by each of them; where they share one, once in all. Real HTTP over loopback:
//! every instance is a server with [`LimitRequests`] around its handler.

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use http::{HeaderName, StatusCode};
use resilience_core::{
    FleetRateLimit, InvalidConfig, Keyed, Quota, RateLimit,
    limit::{
        KeyedRateLimit,
        store::{InProcessLimits, LimitStore},
    },
};
use resilience_http::{LimitKey, LimitRequests, server::RequestLimit};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::clients::{Sharing, fresh_prefix};

/// Limit of a tenant: calls per second, and as many at once.
const QUOTA: u64 = 8;
/// What the greedy one sends in a second, and the modest one.
const GREEDY: u32 = 32;
const MODEST: u32 = 4;
/// How long a call may take; the handlers take no time.
const PATIENCE: Duration = Duration::from_secs(2);

const SECOND: Duration = Duration::from_secs(1);
const TENANT: HeaderName = HeaderName::from_static("x-tenant");

/// How the tenants fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Calls of the greedy one.
    pub(crate) sent: u64,
    /// Those of them that were admitted.
    pub(crate) admitted: u64,
    /// The most that the quota allows in the time that it took.
    pub(crate) allowed: u64,
    /// Calls of the modest one that were refused.
    pub(crate) modest_refused: u64,
}

/// What a tenant may, in words.
pub(crate) fn quota() -> String {
    format!("{QUOTA} calls a second, {QUOTA} at once; the greedy tenant sends {GREEDY} a second")
}

/// The service, and the two tenants.
#[derive(Debug)]
pub(crate) struct Scene {
    instances: Vec<SocketAddr>,
    // Ended when this is dropped.
    servers: JoinSet<()>,
}

impl Scene {
    /// Starts `instances` instances of the service, which share their limit as `sharing` says.
    pub(crate) async fn set(instances: usize, sharing: &Sharing) -> Result<Self, Box<dyn Error>> {
        let (prefix, memory) = (fresh_prefix(), InProcessLimits::new());
        let mut scene = Self {
            instances: Vec::with_capacity(instances),
            servers: JoinSet::new(),
        };
        for _ in 0..instances {
            let app = Router::new().route("/", get(async || "yours"));
            let app = match (sharing, sharing.connect(&prefix, instances).await?) {
                (Sharing::Local, _) => by_tenant(app, &own_limit()?),
                (_, Some(redis)) => by_tenant(app, &shared_limit(redis.limits())?),
                (_, None) => by_tenant(app, &shared_limit(memory.clone())?),
            };
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            scene.instances.push(listener.local_addr()?);
            scene.servers.spawn(async move {
                // It ends with the scene, and until then there is nothing that could end it.
                let _ = axum::serve(listener, app).await;
            });
        }
        Ok(scene)
    }

    /// Lets both tenants call for so long, or until `stop` turns true.
    pub(crate) async fn play(self, total: Duration, stop: watch::Receiver<bool>) -> Held {
        let start = Instant::now();
        let http = reqwest::Client::builder().timeout(PATIENCE).build();
        let Ok(http) = http else {
            return Held::default();
        };
        let tenant = |name, rate| {
            let tenant = Tenant {
                http: http.clone(),
                name,
                instances: self.instances.clone(),
                counts: Arc::default(),
            };
            tenant.send(rate, total, stop.clone())
        };
        let (greedy, modest) = tokio::join!(tenant("greedy", GREEDY), tenant("modest", MODEST));
        let gained = start.elapsed().as_micros() * u128::from(QUOTA) / 1_000_000;
        Held {
            sent: greedy.sent.load(Relaxed),
            admitted: greedy.admitted.load(Relaxed),
            allowed: QUOTA + u64::try_from(gained).unwrap_or(u64::MAX),
            modest_refused: modest.refused.load(Relaxed),
        }
    }
}

fn own_limit() -> Result<KeyedRateLimit<String>, InvalidConfig> {
    let limit = RateLimit::builder("tenants").permits(QUOTA, SECOND);
    limit.keyed(Keyed::new())
}

fn shared_limit(store: impl LimitStore) -> Result<FleetRateLimit, InvalidConfig> {
    let limit = FleetRateLimit::builder("tenants").store(store);
    limit
        .limit("per-second", Quota::per(QUOTA, SECOND)?)
        .build()
}

fn by_tenant<L: RequestLimit>(app: Router, limit: &L) -> Router {
    app.layer(
        LimitRequests::new(limit)
            .key(LimitKey::header(TENANT))
            .layer(),
    )
}

/// One tenant, and what became of its calls.
#[derive(Clone)]
struct Tenant {
    http: reqwest::Client,
    name: &'static str,
    instances: Vec<SocketAddr>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    admitted: AtomicU64,
    refused: AtomicU64,
}

impl Tenant {
    /// Sends `rate` calls a second, to all instances in turn, whether or not earlier ones have ended.
    async fn send(
        self,
        rate: u32,
        total: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Arc<Counts> {
        let mut calls = JoinSet::new();
        let sending = async {
            let mut ticks = interval(SECOND / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0..usize::try_from(total.as_secs() * u64::from(rate)).unwrap_or(0) {
                ticks.tick().await;
                while calls.try_join_next().is_some() {}
                calls.spawn(self.clone().call(number));
            }
            while calls.join_next().await.is_some() {}
        };
        tokio::select! {
            () = sending => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
        calls.shutdown().await;
        self.counts
    }

    async fn call(self, number: usize) {
        let url = format!("http://{}/", self.instances[number % self.instances.len()]);
        self.counts.sent.fetch_add(1, Relaxed);
        let Ok(response) = self.http.get(url).header(TENANT, self.name).send().await else {
            return;
        };
        let counter = match response.status() {
            StatusCode::TOO_MANY_REQUESTS => &self.counts.refused,
            _ => &self.counts.admitted,
        };
        counter.fetch_add(1, Relaxed);
    }
}
