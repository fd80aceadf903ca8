//! One of each thing that a store keeps for a time, and how long each lasts while the clock of its server is set.

use std::time::Duration;

use bytes::Bytes;
use resilience_core::{
    breaker::fleet::{
        BreakerStore, Change, FleetOverride, FleetState, LeaseAnswer, OverrideKind, Report,
    },
    bulkhead::fleet::{AcquireRequest, Admission, BulkheadStore, Heartbeat, Release},
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, Takeover, WriteOutcome},
    },
    limit::{
        Quota,
        regions::RegionStore,
        store::{Demand, LimitStore},
    },
};
use resilience_redis::Redis;
use tokio::time::Instant;

/// How long everything here is asked to last.
pub const SHORT: Duration = Duration::from_millis(400);
const SHORT_MS: u64 = SHORT.as_millis() as u64;
/// More than a test takes, in milliseconds.
pub const LONG_MS: u64 = 60_000;
/// Something that does not end within this is taken to last forever.
const FOREVER: Duration = Duration::from_secs(20);

/// A request for the only place.
#[must_use]
pub fn place(lease: &str, lease_ms: u64) -> AcquireRequest {
    AcquireRequest {
        lease: lease.into(),
        cost: 1,
        limit: 1,
        lease_ms,
        ticket_ms: 0,
        releases: Vec::new(),
    }
}

/// A claim that takes over whatever there is.
#[must_use]
pub fn claim(owner: &str, lease_ms: u64, retention_ms: u64) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms,
        retention_ms,
        takeover: Takeover::Any,
    }
}

fn enter(expected: u64, to: FleetState, lasting_ms: u64) -> Change {
    Change {
        expected,
        to,
        lasting_ms,
        trips: 1,
        by: "a test".into(),
        cause: String::new(),
    }
}

fn report(instance: &str, live_ms: u64) -> Report {
    Report {
        instance: instance.into(),
        voter: instance.into(),
        sequence: 1,
        epoch: 0,
        counts: Default::default(),
        failing: true,
        bucket_ms: 1_000,
        live_ms,
        state: None,
    }
}

/// One of each thing that lasts for [`SHORT`], in a store.
#[derive(Clone, Debug)]
pub struct Lasting {
    redis: Redis,
    /// When the first of them began, and the last.
    began: (Instant, Instant),
}

impl Lasting {
    /// Everything begins.
    ///
    /// # Panics
    /// When the store gives an answer that it should not give.
    pub async fn begin(redis: Redis) -> Self {
        let first = Instant::now();
        let breakers = redis.breakers();
        let open = enter(0, FleetState::Open, SHORT_MS);
        assert!(breakers.change("open", &open).await.expect("ok").0);
        let half_open = enter(0, FleetState::HalfOpen, 0);
        assert!(breakers.change("probe", &half_open).await.expect("ok").0);
        let probe = breakers.lease("probe", &"dead".into(), 1, SHORT_MS).await;
        assert!(matches!(probe.expect("ok").0, LeaseAnswer::Granted { .. }));
        let forced = FleetOverride {
            kind: OverrideKind::ForceOpen,
            reason: "a drill".into(),
            by: "a test".into(),
            expires_ms: Some(SHORT_MS),
        };
        let forced = breakers.set_override("override", Some(forced), "a test");
        forced.await.expect("ok");
        let dead = report("dead", SHORT_MS);
        assert_eq!(breakers.report("live", &dead).await.expect("ok").live, 1);

        let bulkheads = redis.bulkheads();
        let taken = bulkheads.acquire("place", &place("dead", SHORT_MS)).await;
        assert!(matches!(taken, Ok(Admission::Granted { .. })));
        let taken = bulkheads.acquire("queue", &place("held", LONG_MS)).await;
        let Ok(Admission::Granted { fence }) = taken else {
            panic!("{taken:?}");
        };
        let waits = AcquireRequest {
            ticket_ms: SHORT_MS,
            ..place("dead", LONG_MS)
        };
        let queued = bulkheads.acquire("queue", &waits).await;
        assert!(matches!(queued, Ok(Admission::Full { .. })));
        let left = [Release {
            lease: "held".into(),
            fence: Some(fence),
        }];
        assert_eq!(bulkheads.release("queue", &left).await, Ok(vec![true]));
        let dead = Heartbeat {
            instance: "dead".into(),
            live_ms: SHORT_MS,
            lease_ms: LONG_MS,
            holdings: Vec::new(),
        };
        assert_eq!(bulkheads.renew("live", &dead).await.expect("ok").1.live, 1);

        let limits = redis.limits();
        assert!(Self::admits(&redis, "wait").await);
        assert!(!Self::admits(&redis, "wait").await);
        limits.heartbeat("live", "dead", SHORT).await.expect("ok");

        let keys = redis.idempotency();
        let leased = claim("dead", SHORT_MS, LONG_MS);
        assert!(matches!(
            keys.claim("n", "lease", &leased).await,
            Ok(Claimed::New(_))
        ));
        let (brief, done) = (claim("a", SHORT_MS, SHORT_MS), "done");
        let Ok(Claimed::New(grant)) = keys.claim("n", done, &brief).await else {
            panic!("it is new");
        };
        let completion = Completion {
            outcome: Bytes::from_static(b"outcome"),
            ttl_ms: SHORT_MS,
        };
        let holder = Holder::new(&brief, &grant);
        let kept = keys.complete("n", done, &holder, &completion).await;
        assert_eq!(kept, Ok(WriteOutcome::Kept));

        let seen = redis.regions().report("demand", "dead", 7, SHORT_MS).await;
        assert_eq!(seen.expect("ok").demand, 7);
        Self {
            redis,
            began: (first, Instant::now()),
        }
    }

    async fn admits(redis: &Redis, subject: &str) -> bool {
        let demands = [Demand {
            limit: "l",
            quota: Quota::per(1, SHORT).expect("a quota"),
            cost: 1,
        }];
        let decided = redis.limits().decide("n", subject, &demands).await;
        decided.expect("ok").outcome.is_admitted()
    }

    /// The same things, by another connection.
    #[must_use]
    pub fn by(self, redis: Redis) -> Self {
        Self { redis, ..self }
    }

    /// Whether the thing called `what` is over. None is looked at in a way that makes it last longer.
    async fn is_over(&self, what: &str) -> bool {
        let redis = &self.redis;
        let (breakers, bulkheads) = (redis.breakers(), redis.bulkheads());
        match what {
            "open" => {
                let asked = breakers.lease("open", &"next".into(), 9, LONG_MS).await;
                matches!(asked.expect("ok").0, LeaseAnswer::Granted { .. })
            }
            "probe" => {
                let asked = breakers.lease("probe", &"next".into(), 1, LONG_MS).await;
                matches!(asked.expect("ok").0, LeaseAnswer::Granted { .. })
            }
            "override" => {
                let view = breakers.view("override").await.expect("ok");
                view.active_override.is_none()
            }
            "live instance of a breaker" => {
                let view = breakers.report("live", &report("next", LONG_MS)).await;
                view.expect("ok").live == 1
            }
            "place" => {
                let asked = bulkheads.acquire("place", &place("next", LONG_MS)).await;
                matches!(asked, Ok(Admission::Granted { .. }))
            }
            "queue" => {
                let asked = bulkheads.acquire("queue", &place("next", LONG_MS)).await;
                matches!(asked, Ok(Admission::Granted { .. }))
            }
            "live instance of a bulkhead" => {
                let next = Heartbeat {
                    instance: "next".into(),
                    live_ms: LONG_MS,
                    lease_ms: LONG_MS,
                    holdings: Vec::new(),
                };
                bulkheads.renew("live", &next).await.expect("ok").1.live == 1
            }
            "wait" => Self::admits(redis, "wait").await,
            "live instance of a limit" => {
                let minute = Duration::from_secs(60);
                redis.limits().heartbeat("live", "next", minute).await == Ok(1)
            }
            "lease" | "done" => {
                let next = claim("next", LONG_MS, LONG_MS);
                let asked = redis.idempotency().claim("n", what, &next).await;
                matches!(asked, Ok(Claimed::New(_) | Claimed::Mine(_)))
            }
            "demand" => redis.regions().read("demand").await.expect("ok").demand == 0,
            other => panic!("there is no {other}"),
        }
    }

    /// Looks at everything until it is over. Returns how much too long each thing lasted, below zero for too short.
    pub async fn overruns(&self) -> Vec<(&'static str, f64)> {
        const ALL: [&str; 12] = [
            "open",
            "probe",
            "override",
            "live instance of a breaker",
            "place",
            "queue",
            "live instance of a bulkhead",
            "wait",
            "live instance of a limit",
            "lease",
            "done",
            "demand",
        ];
        let (first, last) = self.began;
        let ended = ALL.map(|what| async move {
            while !self.is_over(what).await && last.elapsed() < FOREVER {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let end = Instant::now();
            let most = end.duration_since(first).as_secs_f64() - SHORT.as_secs_f64();
            let least = end.duration_since(last).as_secs_f64() - SHORT.as_secs_f64();
            // Between the two it cannot be known.
            (what, if most < 0.0 { most } else { least.max(0.0) })
        });
        futures_util::future::join_all(ended).await
    }
}
