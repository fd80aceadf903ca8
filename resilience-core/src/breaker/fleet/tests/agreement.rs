//! From any pair of a record and local states, the record and the instances agree again.

use tokio::task::JoinSet;

use super::{around::Around, freezing::Freezing, *};
use crate::{breaker::Override, fleet::millis};

const OPEN: Duration = ms(2_000);
const CALM: Duration = ms(1_000);
const LEASE: Duration = ms(1_000);
const HALF_OPEN: Duration = ms(3_000);
/// Three reports without an answer, and the time from then on until an instance sends probes of its own.
const ALONE: Duration = ms(2_200);
/// Duration of the calls that are made meanwhile, store budgets and steps of the test.
const CALLS: Duration = ms(1_500);

/// The paused clock goes on by itself when nothing is left to do.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn instance(store: &Freezing) -> CircuitBreaker {
    let rules = FleetRules::new().probe_lease(LEASE);
    CircuitBreaker::builder("payments")
        .minimum_calls(10)
        .open_for(OpenFor::fixed(OPEN).jitter(0.0))
        .half_open(HalfOpen::probes(3).max_wait(HALF_OPEN))
        .store(store.clone())
        .fleet(FleetOptions::new().heartbeat(CALM))
        .fleet_rules(rules)
        .build()
        .unwrap()
}

/// What the others have done to the record meanwhile.
#[derive(Clone, Copy, Debug)]
enum Recorded {
    /// Nothing: all know it.
    Known,
    OpenAgain,
    HalfOpen,
    /// With every probe leased to instances that died.
    HalfOpenWithDeadHolders,
    /// One probe failed, one succeeded, the third is with an instance that died.
    HalfOpenUndecided,
    RampUp,
    Closed,
    Lost,
    /// An order holds the fleet for a while.
    Overridden,
}

const RECORDED: [Recorded; 9] = [
    Recorded::Known,
    Recorded::OpenAgain,
    Recorded::HalfOpen,
    Recorded::HalfOpenWithDeadHolders,
    Recorded::HalfOpenUndecided,
    Recorded::RampUp,
    Recorded::Closed,
    Recorded::Lost,
    Recorded::Overridden,
];

#[derive(Clone, Copy, Debug)]
enum Local {
    Recovered,
    /// Closed by hand.
    Reset,
    Open,
    /// Half-open, with a probe of its own that hangs.
    Probing,
    Following,
    /// Forced closed by hand for a while.
    Overridden,
}

const LOCAL: [[Local; 3]; 8] = [
    [Local::Recovered; 3],
    [Local::Reset; 3],
    [Local::Open; 3],
    [Local::Probing; 3],
    [Local::Following; 3],
    [Local::Overridden; 3],
    [Local::Recovered, Local::Open, Local::Following],
    [Local::Reset, Local::Probing, Local::Overridden],
];

const OVERRIDE: Duration = ms(1_000);

/// `hanging` keeps the probes that hang.
async fn bring_to(breaker: &CircuitBreaker, local: Local, hanging: &mut JoinSet<()>) {
    match local {
        Local::Recovered => {
            for _ in 0..4 {
                let _ = through_layer(breaker, true).await;
            }
            assert_eq!(breaker.state(), State::Closed);
        }
        Local::Reset => breaker.reset("by hand"),
        Local::Open => {
            for _ in 0..3 {
                let _ = through_layer(breaker, false).await;
            }
            assert_eq!(breaker.state(), State::Open);
        }
        Local::Probing => {
            let service = tower::ServiceBuilder::new()
                .layer(breaker.layer())
                .service_fn(|()| std::future::pending::<Result<(), Error<()>>>());
            hanging.spawn(async { drop(tower::ServiceExt::oneshot(service, ()).await) });
            pass(ms(400)).await;
        }
        Local::Following => assert_eq!(breaker.state(), State::HalfOpen),
        Local::Overridden => {
            breaker.set_override(Override::force_closed("by hand").expires_after(OVERRIDE));
        }
    }
}

async fn bring_record_to(store: &InProcessBreakers, recorded: Recorded) {
    let epoch = store.view("payments").await.unwrap().epoch;
    let enter = async |to, lasting_ms| {
        let change = Change {
            expected: epoch,
            to,
            lasting_ms,
            trips: 2,
            by: "another".into(),
            cause: "test".into(),
        };
        store.change("payments", &change).await.unwrap().1.epoch
    };
    let lease = async |times: u32| {
        for n in 0..times {
            let name = Arc::from(format!("dead-{n}"));
            let _ = store.lease("payments", &name, 3, millis(LEASE)).await;
        }
    };
    match recorded {
        Recorded::Known => {}
        Recorded::OpenAgain => {
            enter(FleetState::Open, millis(OPEN)).await;
        }
        Recorded::HalfOpen => {
            enter(FleetState::HalfOpen, 0).await;
        }
        Recorded::HalfOpenWithDeadHolders => {
            enter(FleetState::HalfOpen, 0).await;
            lease(3).await;
        }
        Recorded::HalfOpenUndecided => {
            let epoch = enter(FleetState::HalfOpen, 0).await;
            lease(3).await;
            for (name, success) in [("dead-0", true), ("dead-1", false)] {
                let settled = store.settle("payments", name, epoch, Some(success)).await;
                assert!(settled.unwrap().0);
            }
        }
        Recorded::RampUp => {
            enter(FleetState::RampUp(0), 500).await;
        }
        Recorded::Closed => {
            enter(FleetState::Closed, 0).await;
        }
        Recorded::Lost => store.flush(),
        Recorded::Overridden => {
            let active_override = FleetOverride {
                kind: OverrideKind::ForceClosed,
                reason: "test".into(),
                by: "ops".into(),
                expires_ms: Some(millis(OVERRIDE)),
            };
            store
                .set_override("payments", Some(active_override), "ops")
                .await
                .unwrap();
        }
    }
}

fn bound(recorded: Recorded, local: [Local; 3]) -> Duration {
    let any = |of: fn(&Local) -> bool| local.iter().any(of);
    let mut bound = CALM.mul_f64(1.2) + LEASE + CALLS;
    if matches!(recorded, Recorded::OpenAgain) || any(|one| matches!(one, Local::Open)) {
        bound += OPEN;
    }
    if any(|one| matches!(one, Local::Probing)) {
        // Its own probe hangs, which opens it again.
        bound += HALF_OPEN + OPEN;
    }
    if matches!(recorded, Recorded::Overridden) || any(|one| matches!(one, Local::Overridden)) {
        bound += OVERRIDE;
    }
    if matches!(recorded, Recorded::RampUp) {
        bound += ms(500);
    }
    if matches!(recorded, Recorded::HalfOpenUndecided) {
        // One more failure, of three, opens again.
        bound += OPEN + LEASE;
    }
    bound
}

/// Calls that succeed until record and instances agree that all is well; the time that it took.
async fn agree_within(
    store: &InProcessBreakers,
    fleet: &[CircuitBreaker],
    bound: Duration,
) -> Option<Duration> {
    let start = tokio::time::Instant::now();
    while start.elapsed() <= bound {
        for breaker in fleet {
            let call = Box::pin(through_layer(breaker, true));
            let _ = tokio::time::timeout(ms(400), call).await;
        }
        pass(ms(50)).await;
        let view = store.view("payments").await.unwrap();
        let closed = fleet.iter().all(|one| one.state() == State::Closed);
        if view.state == FleetState::Closed && view.active_override.is_none() && closed {
            return Some(start.elapsed());
        }
    }
    None
}

/// Whether an outage of the dependency opens the fleet, once it outweighs the good calls of the window.
async fn is_protected(store: &InProcessBreakers, fleet: &[CircuitBreaker]) -> bool {
    for _ in 0..240 {
        for breaker in fleet {
            let _ = Box::pin(through_layer(breaker, false)).await;
        }
        pass(ms(50)).await;
        let view = store.view("payments").await.unwrap();
        // An open state that was over when it was restored only waits for probes.
        if view.state == FleetState::Open && view.remaining_ms > 0 {
            pass(ms(200)).await;
            return states(fleet) == vec![State::Open; fleet.len()];
        }
    }
    false
}

/// A fleet of three that knows that it is open (or half-open), and whose store has been frozen for so long that each is
/// on its own.
async fn frozen(half_open: bool) -> (Freezing, Vec<CircuitBreaker>) {
    let store = Freezing::new();
    let fleet: Vec<_> = (0..3).map(|_| instance(&store)).collect();
    pass(ms(50)).await;
    fleet.iter().for_each(|breaker| fail(breaker, 9));
    pass(ms(400)).await;
    assert_eq!(states(&fleet), [State::Open; 3]);
    if !half_open {
        store.freeze(true);
    }
    pass(OPEN).await;
    if half_open {
        let ghost = Arc::from("dead");
        let _ = store
            .inner
            .lease("payments", &ghost, 3, millis(LEASE))
            .await;
        pass(ms(300)).await;
        store.freeze(true);
    }
    pass(ALONE).await;
    assert_eq!(states(&fleet), [State::HalfOpen; 3]);
    (store, fleet)
}

async fn disagreement(half_open: bool, recorded: Recorded, local: [Local; 3]) -> Option<String> {
    let (store, fleet) = frozen(half_open).await;
    let mut hanging = JoinSet::new();
    for (breaker, local) in fleet.iter().zip(local) {
        bring_to(breaker, local, &mut hanging).await;
    }
    bring_record_to(&store.inner, recorded).await;
    store.freeze(false);
    let bound = bound(recorded, local);
    let case = format!("known half-open: {half_open}, {recorded:?}, {local:?}");
    if agree_within(&store.inner, &fleet, bound).await.is_none() {
        let view = store.inner.view("payments").await.unwrap();
        return Some(format!(
            "{case}: {:?} and {:?} after {bound:?}",
            view.state,
            states(&fleet)
        ));
    }
    let protected = is_protected(&store.inner, &fleet).await;
    (!protected).then(|| format!("{case}: the next outage opens nothing"))
}

#[tokio::test(start_paused = true)]
async fn record_and_instances_agree_from_any_pair_of_states_within_the_bound() {
    let mut stuck = Vec::new();
    for half_open in [false, true] {
        for recorded in RECORDED {
            for local in LOCAL {
                stuck.extend(disagreement(half_open, recorded, local).await);
            }
        }
    }
    assert!(stuck.is_empty(), "{} stuck: {stuck:#?}", stuck.len());
}

#[tokio::test(start_paused = true)]
async fn one_instance_that_is_left_brings_the_record_back() {
    for half_open in [false, true] {
        for local in [Local::Recovered, Local::Reset, Local::Following] {
            let (store, mut fleet) = frozen(half_open).await;
            bring_to(&fleet[0], local, &mut JoinSet::new()).await;
            fleet.truncate(1);
            store.freeze(false);
            let bound = bound(Recorded::Known, [local; 3]);
            let agreed = agree_within(&store.inner, &fleet, bound).await;
            assert!(agreed.is_some(), "{half_open} {local:?}");
        }
    }
}

/// An instance that recovered alone knows less than a fleet that has opened again since.
#[tokio::test(start_paused = true)]
async fn a_recovery_alone_does_not_close_a_fleet_that_has_opened_again_since() {
    let (store, fleet) = frozen(false).await;
    bring_to(&fleet[0], Local::Recovered, &mut JoinSet::new()).await;
    bring_record_to(&store.inner, Recorded::OpenAgain).await;
    store.freeze(false);
    pass(CALM).await;
    assert_eq!(states(&fleet), [State::Open; 3]);
    let view = store.inner.view("payments").await.unwrap();
    assert_eq!((view.state, view.trips), (FleetState::Open, 2));
}

/// One interleaving of outages of the dependency and hangs of the store, then all is well.
async fn interleaving(seed: u64) -> Option<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let store = Freezing::new();
    let fleet: Vec<_> = (0..3).map(|_| instance(&store)).collect();
    pass(ms(50)).await;
    let (mut up, mut frozen) = (true, false);
    for _ in 0..random.usize(4..12) {
        match random.u8(..3) {
            0 => up = !up,
            1 => {
                frozen = !frozen;
                store.freeze(frozen);
            }
            _ => {}
        }
        for _ in 0..random.usize(1..12) {
            for breaker in &fleet {
                let _ = Box::pin(through_layer(breaker, up)).await;
            }
            pass(ms(random.u64(10..150))).await;
        }
    }
    store.freeze(false);
    let bound = OPEN + HALF_OPEN + CALM.mul_f64(1.2) + LEASE + CALLS;
    if agree_within(&store.inner, &fleet, bound).await.is_none() {
        let view = store.inner.view("payments").await.unwrap();
        return Some(format!("{seed}: {:?} and {:?}", view.state, states(&fleet)));
    }
    let protected = is_protected(&store.inner, &fleet).await;
    (!protected).then(|| format!("{seed}: the next outage opens nothing"))
}

#[tokio::test(start_paused = true)]
async fn no_interleaving_of_store_hangs_and_outages_leaves_the_fleet_unprotected() {
    let mut stuck = Vec::new();
    for seed in 0..40 {
        stuck.extend(interleaving(seed).await);
    }
    assert!(stuck.is_empty(), "{} stuck: {stuck:#?}", stuck.len());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_leaves_the_agent_hearing_pushes_and_degraded() {
    let store = Freezing::new();
    let hung = Hung(store.inner.clone());
    let breaker = CircuitBreaker::builder("payments").store(hung).build();
    let (breaker, other) = (breaker.unwrap(), instance(&store));
    pass(ms(3_500)).await;
    assert!(breaker.snapshot().degraded);
    bring_record_to(&store.inner, Recorded::OpenAgain).await;
    pass(ms(400)).await;
    assert_eq!(breaker.state(), State::Open, "it hears what is pushed");
    assert_eq!(other.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_half_open_breaker_does_not_wait_for_a_store_that_hangs() {
    let (_store, fleet) = frozen(false).await;
    let start = tokio::time::Instant::now();
    assert_eq!(through_layer(&fleet[0], true).await, Ok(()));
    assert!(start.elapsed() <= ms(300), "{:?}", start.elapsed());
    assert_eq!(through_layer(&fleet[0], true).await, Ok(()));
    assert!(start.elapsed() <= ms(300), "the second does not ask");
}

/// Every step hangs for good; pushes come.
#[derive(Debug)]
pub(super) struct Hung(pub(super) InProcessBreakers);

impl Around for Hung {
    fn inner(&self) -> &InProcessBreakers {
        &self.0
    }

    fn send<'a, T, F>(
        &'a self,
        _: impl FnOnce(InProcessBreakers) -> F + Send + 'static,
    ) -> StoreFuture<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        Box::pin(std::future::pending())
    }
}
