//! The scripts against the record: whatever is done to both, in whatever order, both show the same.
//!
//! Times differ between the two, so durations are either long (nothing ends within the test) or brief (they are waited
//! for before anything is compared). Epochs are compared by their order of appearance.

use std::{sync::Arc, time::Duration};

use proptest::{prelude::*, test_runner::TestRunner};
use resilience_core::breaker::{
    State,
    fleet::{
        BreakerMember, BreakerMembers, BreakerRecord, BreakerStore, BreakerView, Change, Counts,
        FleetOverride, FleetState, LeaseAnswer, OverrideKind, Report,
    },
};
use resilience_redis::{Redis, RedisBreakers};
use resilience_tests::redis::RedisServer;
use tokio::time::Instant;

const LONG: u64 = 3_600_000;
const BRIEF: u64 = 1;
/// Of the three instances.
const STATES: [Option<State>; 3] = [Some(State::HalfOpen), None, Some(State::Closed)];

/// The epoch of a step.
#[derive(Clone, Copy, Debug)]
enum Of {
    Now,
    Past(usize),
    Future,
}

#[derive(Clone, Debug)]
enum Op {
    Report {
        instance: u8,
        sequence: u64,
        epoch: Of,
        counts: Counts,
        failing: bool,
        buckets: u64,
        live: u64,
    },
    Change {
        expected: Of,
        to: FleetState,
        lasting: u64,
        trips: u32,
    },
    Restore {
        epoch: Of,
        state: FleetState,
        remaining: u64,
        active_override: Option<FleetOverride>,
    },
    Lease {
        lease: u8,
        budget: u32,
        time: u64,
    },
    Settle {
        lease: u8,
        epoch: Of,
        success: Option<bool>,
    },
    Order(Option<FleetOverride>),
    Reset,
    Flush,
}

fn of() -> impl Strategy<Value = Of> {
    prop_oneof![6 => Just(Of::Now), 2 => (1usize..4).prop_map(Of::Past), 1 => Just(Of::Future)]
}

fn state() -> impl Strategy<Value = FleetState> {
    prop_oneof![
        2 => Just(FleetState::Closed),
        4 => Just(FleetState::Open),
        4 => Just(FleetState::HalfOpen),
        2 => (0u8..3).prop_map(FleetState::RampUp),
    ]
}

fn time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(BRIEF), Just(LONG)]
}

fn any_override() -> impl Strategy<Value = Option<FleetOverride>> {
    let kind = prop_oneof![
        Just(OverrideKind::ForceOpen),
        Just(OverrideKind::ForceClosed),
        Just(OverrideKind::Disable),
        Just(OverrideKind::MetricsOnly),
    ];
    let active_override = (kind, "[a-z:é]{0,6}", proptest::option::of(time()));
    proptest::option::of(
        active_override.prop_map(|(kind, reason, expires_ms)| FleetOverride {
            kind,
            reason,
            by: "ops".into(),
            expires_ms,
        }),
    )
}

fn counts() -> impl Strategy<Value = Counts> {
    (0u64..4, 0u64..4, 0u64..3).prop_map(|(success, failure, slow)| Counts {
        success,
        failure,
        slow,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let report = (
        0u8..3,
        0u64..5,
        of(),
        counts(),
        any::<bool>(),
        1u64..3,
        time(),
    );
    let report = report.prop_map(
        |(instance, sequence, epoch, counts, failing, buckets, live)| Op::Report {
            instance,
            sequence,
            epoch,
            counts,
            failing,
            buckets,
            live,
        },
    );
    let lasting = prop_oneof![Just(0), time()];
    let change =
        (of(), state(), lasting, 0u32..4).prop_map(|(expected, to, lasting, trips)| Op::Change {
            expected,
            to,
            lasting,
            trips,
        });
    let remaining = prop_oneof![Just(0), time()];
    let restore = (of(), state(), remaining, any_override()).prop_map(
        |(epoch, state, remaining, active_override)| Op::Restore {
            epoch,
            state,
            remaining,
            active_override,
        },
    );
    let lease = (0u8..4, 0u32..4, time()).prop_map(|(lease, budget, time)| Op::Lease {
        lease,
        budget,
        time,
    });
    let settle =
        (0u8..4, of(), any::<Option<bool>>()).prop_map(|(lease, epoch, success)| Op::Settle {
            lease,
            epoch,
            success,
        });
    prop_oneof![
        6 => report,
        5 => change,
        2 => restore,
        6 => lease,
        5 => settle,
        1 => any_override().prop_map(Op::Order),
        1 => Just(Op::Reset),
        1 => Just(Op::Flush),
    ]
}

impl Op {
    fn is_brief(&self) -> bool {
        let ends = |active_override: &Option<FleetOverride>| {
            active_override
                .as_ref()
                .is_some_and(|active_override| active_override.expires_ms == Some(BRIEF))
        };
        match self {
            Self::Report { live, .. } => *live == BRIEF,
            Self::Change { lasting, .. } => *lasting == BRIEF,
            Self::Restore {
                remaining,
                active_override,
                ..
            } => *remaining == BRIEF || ends(active_override),
            Self::Lease { time, .. } => *time == BRIEF,
            Self::Order(active_override) => ends(active_override),
            _ => false,
        }
    }
}

/// The epochs that one side has shown, oldest first.
#[derive(Default)]
struct Epochs(Vec<u64>);

impl Epochs {
    fn get(&self, of: Of) -> u64 {
        let newest = self.0.last().copied().unwrap_or_default();
        match of {
            Of::Now => newest,
            Of::Past(steps) => {
                let at = self.0.len().saturating_sub(1 + steps);
                self.0.get(at).copied().unwrap_or_default()
            }
            Of::Future => newest + 100_000,
        }
    }

    /// Its number in the order of appearance.
    fn number(&mut self, epoch: u64) -> usize {
        let known = self.0.iter().position(|known| *known == epoch);
        known.unwrap_or_else(|| {
            self.0.push(epoch);
            self.0.len() - 1
        })
    }
}

/// Both sides, and what they have shown.
struct Pair<'a> {
    server: &'a RedisServer,
    store: &'a RedisBreakers,
    name: String,
    record: BreakerRecord,
    start: Instant,
    here: Epochs,
    there: Epochs,
}

impl Pair<'_> {
    fn now(&self) -> u64 {
        LONG + u64::try_from(self.start.elapsed().as_millis()).expect("a short test")
    }

    /// Does it to both: whether each has done it.
    async fn both(&mut self, op: &Op) -> (bool, bool) {
        let now = self.now();
        let (here, there) = (|of| self.here.get(of), |of| self.there.get(of));
        let (store, name, record) = (self.store, self.name.as_str(), &mut self.record);
        let answered = "an answer";
        match op.clone() {
            Op::Report {
                instance,
                sequence,
                epoch,
                counts,
                failing,
                buckets,
                live,
            } => {
                let report = |epoch| Report {
                    instance: format!("i{instance}").into(),
                    // Two of the three are one that came back.
                    voter: format!("v{}", instance / 2).into(),
                    sequence,
                    epoch,
                    counts,
                    failing,
                    bucket_ms: buckets * LONG,
                    live_ms: live,
                    state: STATES[usize::from(instance)],
                };
                record.report(&report(here(epoch)), now);
                store
                    .report(name, &report(there(epoch)))
                    .await
                    .expect(answered);
                (true, true)
            }
            Op::Change {
                expected,
                to,
                lasting,
                trips,
            } => {
                let change = |expected| Change {
                    expected,
                    to,
                    lasting_ms: lasting,
                    trips,
                    by: "somebody".into(),
                    cause: "because: é \"quoted\"".into(),
                };
                let done = record.change(&change(here(expected)), now);
                let (did, _) = store
                    .change(name, &change(there(expected)))
                    .await
                    .expect(answered);
                (done, did)
            }
            Op::Restore {
                epoch,
                state,
                remaining,
                active_override,
            } => {
                let known = |epoch| BreakerView {
                    epoch,
                    state,
                    remaining_ms: remaining,
                    age_ms: 5_000,
                    trips: 2,
                    by: "restorer".into(),
                    cause: "lost".into(),
                    active_override: active_override.clone(),
                    ..BreakerView::default()
                };
                let done = record.restore(&known(here(epoch)), now);
                let (did, _) = store
                    .restore(name, &known(there(epoch)))
                    .await
                    .expect(answered);
                (done, did)
            }
            Op::Lease {
                lease,
                budget,
                time,
            } => {
                let lease: Arc<str> = format!("l{lease}").into();
                let done = record.lease(&lease, budget, time, now);
                let (did, _) = store
                    .lease(name, &lease, budget, time)
                    .await
                    .expect(answered);
                let granted = |answer| matches!(answer, LeaseAnswer::Granted { .. });
                (granted(done), granted(did))
            }
            Op::Settle {
                lease,
                epoch,
                success,
            } => {
                let lease = format!("l{lease}");
                let done = record.settle(&lease, here(epoch), success, now);
                let (did, _) = store
                    .settle(name, &lease, there(epoch), success)
                    .await
                    .expect(answered);
                (done, did)
            }
            Op::Order(active_override) => {
                record.set_override(active_override.clone(), "ops", now);
                store
                    .set_override(name, active_override, "ops")
                    .await
                    .expect(answered);
                (true, true)
            }
            Op::Reset => {
                record.reset("ops", "tidy", now);
                store.reset(name, "ops", "tidy").await.expect(answered);
                (true, true)
            }
            Op::Flush => {
                *record = BreakerRecord::default();
                assert!(self.server.command("FLUSHALL").contains("OK"));
                (true, true)
            }
        }
    }

    /// Waits on both sides.
    async fn let_pass(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.store.view("clock").await.expect("an answer");
        }
    }

    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let here = self.record.view(self.now());
        let there = self.store.view(&self.name).await.expect("an answer");
        let epochs = (self.here.number(here.epoch), self.there.number(there.epoch));
        prop_assert_eq!(epochs.0, epochs.1, "epochs {:?} and {:?}", here, there);
        prop_assert!(here.remaining_ms.abs_diff(there.remaining_ms) < 60_000);
        // A state that was never entered is as old as its clock.
        let ages = (here.age_ms.min(LONG), there.age_ms.min(LONG));
        prop_assert!(ages.0.abs_diff(ages.1) < 60_000, "ages {:?}", ages);
        prop_assert_eq!(timeless(here), timeless(there));
        let here = self.record.members(self.now());
        let there = self.store.members(&self.name).await.expect("an answer");
        prop_assert_eq!(without_ages(here), without_ages(there));
        Ok(())
    }
}

fn without_ages(mut members: BreakerMembers) -> BreakerMembers {
    let ageless = |one: &mut BreakerMember| {
        one.live_ms = 0;
        one.reported_ms = one.reported_ms.map(|_| 0);
    };
    members.instances.iter_mut().for_each(ageless);
    members
}

/// All but times and epoch.
fn timeless(view: BreakerView) -> BreakerView {
    BreakerView {
        epoch: 0,
        remaining_ms: u64::from(view.remaining_ms > 0),
        age_ms: 0,
        active_override: view.active_override.map(|active_override| FleetOverride {
            expires_ms: active_override.expires_ms.map(|_| 1),
            ..active_override
        }),
        ..view
    }
}

#[test]
fn the_scripts_do_what_the_record_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _within = runtime.enter();
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .budget(Duration::from_secs(5))
        .connect()
        .expect("good settings");
    runtime
        .block_on(redis.ready(Duration::from_secs(5)))
        .expect("connects");
    let store = redis.breakers();
    let config = ProptestConfig {
        cases: 100,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    };
    let steps = std::cell::Cell::new(0u64);
    let mut runner = TestRunner::new(config);
    let sequence = proptest::collection::vec(op(), 1..40);
    let outcome = runner.run(&sequence, |ops| {
        let mut pair = Pair {
            server: &server,
            store: &store,
            name: format!("sequence {}", fastrand::u64(..)),
            record: BreakerRecord::default(),
            start: Instant::now(),
            here: Epochs::default(),
            there: Epochs::default(),
        };
        runtime.block_on(async {
            for op in &ops {
                steps.set(steps.get() + 1);
                let (here, there) = pair.both(op).await;
                prop_assert_eq!(here, there, "done here and there: {:?}", op);
                if op.is_brief() {
                    pair.let_pass(Duration::from_millis(3)).await;
                }
                // Epochs start again at the clock, which must have passed all that there were.
                if matches!(op, Op::Flush) {
                    pair.let_pass(Duration::from_millis(40)).await;
                }
                pair.compare().await?;
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    println!("{} steps on both sides", steps.get());
}
