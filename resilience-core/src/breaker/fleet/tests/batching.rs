//! A store with a handle: its breakers report together, idle ones not at all.

use super::{around::Around, *};
use crate::{
    breaker::Override,
    fleet::{MemberStore, OnOutage, StoreHandle},
};

/// A store that notes how many reports came in each call.
#[derive(Clone, Debug)]
pub(super) struct Noting {
    inner: InProcessBreakers,
    handle: StoreHandle,
    /// Sizes of `report_all`, and 1 for each `report`.
    sizes: Arc<Mutex<Vec<usize>>>,
}

/// As many live instances as it says, if it answers.
#[derive(Debug, Default)]
struct Members {
    silent: AtomicBool,
}

impl MemberStore for Members {
    fn heartbeat<'a>(&'a self, _: &'a str, _: Duration) -> StoreFuture<'a, u64> {
        let answer = match self.silent.load(Relaxed) {
            true => Err(StoreError::new("silent", false)),
            false => Ok(1),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn noting(members: &Arc<Members>) -> Noting {
    Noting {
        inner: InProcessBreakers::new(),
        handle: StoreHandle::with_members(Arc::clone(members) as _),
        sizes: Arc::default(),
    }
}

impl Noting {
    /// Since the last call.
    fn sizes(&self) -> Vec<usize> {
        std::mem::take(&mut self.sizes.lock().unwrap())
    }
}

impl Around for Noting {
    fn inner(&self) -> &InProcessBreakers {
        &self.inner
    }

    fn send<'a, T, F>(
        &'a self,
        step: impl FnOnce(InProcessBreakers) -> F + Send + 'static,
    ) -> StoreFuture<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        Box::pin(step(self.inner.clone()))
    }

    fn store_handle(&self) -> Option<&StoreHandle> {
        Some(&self.handle)
    }

    fn note_reports(&self, reports: usize) {
        self.sizes.lock().unwrap().push(reports);
    }
}

fn breaker(store: &Noting, name: &str) -> CircuitBreaker {
    CircuitBreaker::builder(name)
        .minimum_calls(10)
        .store(store.clone())
        .fleet(FleetOptions::new().heartbeat(ms(1_000)))
        .build()
        .unwrap()
}

async fn started(store: &Noting, size: usize) -> Vec<CircuitBreaker> {
    let names = (0..size).map(|number| format!("host-{number}"));
    let all = names.map(|name| breaker(store, &name)).collect();
    // Until the membership is known, and everyone has reported since.
    pass(ms(4_000)).await;
    store.sizes();
    all
}

#[tokio::test(start_paused = true)]
async fn breakers_that_are_due_at_the_same_tick_share_a_command_for_at_most_32() {
    let store = noting(&Arc::default());
    let all = started(&store, 70).await;
    for _ in 0..3 {
        all.iter().for_each(|breaker| succeed(breaker, 1));
        pass(ms(1_250)).await;
        let mut sizes = store.sizes();
        sizes.sort_unstable();
        assert_eq!(sizes, [6, 32, 32]);
    }
    for (number, _) in all.iter().enumerate() {
        let view = store.inner.view(&format!("host-{number}")).await.unwrap();
        assert_eq!(view.window.success, 3, "each got its own report");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_breakers_are_silent_and_the_first_call_is_reported() {
    let store = noting(&Arc::default());
    let all = started(&store, 5).await;
    pass(ms(20_000)).await;
    assert_eq!(store.sizes(), [0; 0]);
    succeed(&all[0], 1);
    pass(ms(1_250)).await;
    assert_eq!(store.sizes(), [1]);
    // They count as live all the same, and receive what changes.
    let view = store.inner.view("host-1").await.unwrap();
    assert_eq!(view.live, 1);
    let fleet = all[1].fleet().unwrap();
    let disable = FleetOverride {
        kind: OverrideKind::Disable,
        reason: "test".into(),
        by: "ops".into(),
        expires_ms: None,
    };
    fleet.set_override(disable).await.unwrap();
    pass(ms(50)).await;
    assert_eq!(all[1].state(), State::Disabled);
    pass(ms(3_000)).await;
    assert!(
        store.sizes().len() >= 2,
        "with an override it reports again"
    );
}

/// Operators see the state of each instance as it reported last.
#[tokio::test(start_paused = true)]
async fn an_idle_breaker_reports_once_more_when_it_has_closed() {
    let store = noting(&Arc::default());
    let all = started(&store, 2).await;
    let own_state = || async {
        let members = store.inner.members("host-0").await.unwrap();
        members.instances[0].state
    };
    assert_eq!(own_state().await, Some(State::Closed));
    all[0].set_override(Override::force_open("drill"));
    pass(ms(2_500)).await;
    assert_eq!(own_state().await, Some(State::ForcedOpen));
    all[0].clear_override("over");
    pass(ms(1_250)).await;
    assert_eq!(own_state().await, Some(State::Closed));
    store.sizes();
    pass(ms(20_000)).await;
    assert_eq!(store.sizes(), [0; 0], "then it is silent again");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_no_names_and_no_log_is_well_all_the_same() {
    let store = noting(&Arc::default());
    let all = started(&store, 1).await;
    let fleet = all[0].fleet().unwrap();
    for _ in 0..5 {
        assert!(fleet.members().await.is_err());
        assert!(fleet.log(10).await.is_err());
    }
    assert!(!all[0].snapshot().degraded);
}

#[tokio::test(start_paused = true)]
async fn idle_breakers_report_while_the_membership_is_not_known() {
    let members = Arc::<Members>::default();
    let store = noting(&members);
    let _all = started(&store, 5).await;
    members.silent.store(true, Relaxed);
    pass(ms(1_500)).await;
    store.sizes();
    pass(ms(3_000)).await;
    assert!(store.sizes().iter().sum::<usize>() >= 10);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_reported_at_once() {
    let store = noting(&Arc::default());
    let all = started(&store, 5).await;
    fail(&all[0], 1);
    pass(ms(20)).await;
    assert_eq!(store.sizes(), [1]);
    assert_eq!(store.inner.view("host-0").await.unwrap().window.failure, 1);
}

/// An instance that died stays in the record for an hour after a report without failures.
#[tokio::test(start_paused = true)]
async fn no_more_instances_are_live_than_the_membership_counts() {
    let store = noting(&Arc::default());
    let all = started(&store, 1).await;
    let dead = Report {
        instance: "dead".into(),
        voter: "dead".into(),
        sequence: 1,
        epoch: 0,
        counts: Counts::default(),
        failing: false,
        bucket_ms: 1_000,
        live_ms: 3_600_000,
        state: None,
    };
    store.inner.report("host-0", &dead).await.unwrap();
    assert_eq!(store.inner.view("host-0").await.unwrap().live, 2);
    assert_eq!(all[0].fleet_view().await.unwrap().live, 1);
    let _other = breaker(&store, "host-0");
    pass(ms(2_000)).await;
    let live = all[0].fleet_view().await.unwrap().live;
    assert_eq!(live, 2, "two breakers of a name on one handle are two");
}

#[tokio::test]
async fn senseless_fleet_options_are_refused_by_name() {
    let field = |builder: CircuitBreakerBuilder| builder.build().unwrap_err().field();
    let local = CircuitBreaker::builder("payments");
    assert_eq!(field(local.clone().fleet(FleetOptions::new())), "fleet");
    assert_eq!(field(local.fleet_rules(FleetRules::new())), "fleet_rules");
    let shared = builder(InProcessBreakers::new());
    for policy in [OnOutage::FailOpen, OnOutage::FailClosed] {
        let options = FleetOptions::new().on_outage(policy);
        assert_eq!(field(shared.clone().fleet(options)), "on_outage");
    }
    let options = FleetOptions::new().heartbeat(ms(50));
    assert_eq!(field(shared.fleet(options)), "alert");
}
