//! The contracts that every layer keeps, as checks that run against any layer.
//!
//! A [`Subject`] is a layer with what the checks have to know about it. [`examine`] runs every contract of
//! [`CONTRACTS`] against it, each with a fresh instance, on a runtime of its own with a paused clock, and returns
//! what was broken. Nothing sleeps, and a layer that spins or hangs is caught rather than waited for.
//!
//! That the checks can fail is proven on layers that are [`broken`] on purpose, one for each way of breaking a
//! contract.

mod checks;
mod drive;
mod probe;

pub mod broken;

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tower::{BoxError, Layer, Service, util::BoxCloneSyncService};

pub use self::{
    checks::CONTRACTS,
    drive::{Driven, Restless, bounded, rest},
    probe::{Answer, Ask, Fault, Plan, Planned, Probe, Readiness, Seen},
};

/// Every service of the checks, whatever it is made of.
pub type Stack = BoxCloneSyncService<Ask, Answer, BoxError>;

/// One contract: a name that says what it demands, and its check.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Contract {
    /// What it demands.
    pub name: &'static str,
    check: fn(Subject) -> Checking,
}

type Checking = Pin<Box<dyn Future<Output = Outcome> + Send>>;
type Outcome = Result<(), String>;

/// A layer under test, made from a handle that the whole check shares.
#[derive(Clone)]
pub struct Instance {
    wrap: Arc<dyn Fn(Stack) -> Stack + Send + Sync>,
    held: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Instance {
    /// `layer` makes a new layer on every call, as `handle.layer()` does; the state is the handle's.
    pub fn new<L>(layer: impl Fn() -> L + Send + Sync + 'static) -> Self
    where
        L: Layer<Stack>,
        L::Service:
            Service<Ask, Response = Answer, Error = BoxError> + Clone + Send + Sync + 'static,
        <L::Service as Service<Ask>>::Future: Send + 'static,
    {
        Self {
            wrap: Arc::new(move |inner| BoxCloneSyncService::new(layer().layer(inner))),
            held: Arc::new(|| 0),
        }
    }

    /// How much the handle says is held by calls: permits, probes, places in a queue.
    #[must_use]
    pub fn held(mut self, held: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.held = Arc::new(held);
        self
    }

    /// The layer around `inner`.
    #[must_use]
    pub fn around<S>(&self, inner: S) -> Stack
    where
        S: Service<Ask, Response = Answer, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let service = (self.wrap)(BoxCloneSyncService::new(inner));
        Stack::new(Restless::new(service))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("held", &(self.held)())
            .finish_non_exhaustive()
    }
}

/// A layer, and what the checks have to know about it.
///
/// Configure it so that fewer than [`OFFENCES`] calls exhaust what it limits (permits, probes), and that it takes
/// more than that many failures to open it, within seconds of (virtual) time: that is how leaks are told from
/// verdicts. `recovery` says how long it needs after a saturation.
#[derive(Clone)]
pub struct Subject {
    name: &'static str,
    make: Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Instance> + Send>> + Send + Sync>,
    saturation: Option<(Plan, usize)>,
    makes_further_attempts: bool,
    exempt: Vec<(&'static str, &'static str)>,
}

/// How often a check repeats an offence (a dropped call, a panic) to see what it leaks.
pub const OFFENCES: usize = 60;

impl Subject {
    /// A layer called `name`; `make` is run once for each check, on the check's runtime.
    pub fn new<F>(name: &'static str, make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Instance> + Send + 'static,
    {
        Self {
            name,
            make: Arc::new(move || Box::pin(make())),
            saturation: None,
            makes_further_attempts: false,
            exempt: Vec::new(),
        }
    }

    /// `calls` calls that go by `plan` bring it to where it rejects the next one: failures for a breaker, hanging
    /// calls for a bulkhead. An hour after they have ended it takes calls again.
    #[must_use]
    pub fn rejects_after(mut self, calls: usize, plan: Plan) -> Self {
        self.saturation = Some((plan, calls));
        self
    }

    /// It makes at least one further attempt after a failure.
    #[must_use]
    pub fn makes_further_attempts(mut self) -> Self {
        self.makes_further_attempts = true;
        self
    }

    /// Is not held to `contract`, for this `reason`.
    ///
    /// # Panics
    ///
    /// If there is no such contract: an exemption must not outlive what it exempts from.
    #[must_use]
    pub fn exempt(mut self, contract: &'static str, reason: &'static str) -> Self {
        assert!(
            CONTRACTS.iter().any(|known| known.name == contract),
            "no contract `{contract}`"
        );
        self.exempt.push((contract, reason));
        self
    }

    async fn instance(&self) -> Instance {
        (self.make)().await
    }

    /// Panics with a list of what is broken, unless nothing is.
    ///
    /// # Panics
    ///
    /// When the layer breaks a contract.
    pub fn keeps_every_contract(&self) {
        let breaches = examine(self);
        assert!(
            breaches.is_empty(),
            "{} breaks {} contract(s):{}",
            self.name,
            breaches.len(),
            list(&breaches)
        );
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("name", &self.name)
            .field("exempt", &self.exempt)
            .finish_non_exhaustive()
    }
}

/// A contract that was broken, and how it showed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Breach {
    /// The contract's name.
    pub contract: &'static str,
    /// What was seen.
    pub seen: String,
}

/// Runs every contract against `subject`.
#[must_use]
pub fn examine(subject: &Subject) -> Vec<Breach> {
    let held_to = |contract: &&Contract| {
        subject
            .exempt
            .iter()
            .all(|(name, _)| *name != contract.name)
    };
    let breach = |contract: &Contract| {
        let seen = check(*contract, subject.clone()).err()?;
        Some(Breach {
            contract: contract.name,
            seen,
        })
    };
    CONTRACTS
        .iter()
        .filter(held_to)
        .filter_map(breach)
        .collect()
}

/// Each check has its thread: one that spins where nothing counts its polls is given up, not waited for.
fn check(contract: Contract, subject: Subject) -> Outcome {
    let (send, receive) = mpsc::channel();
    thread::Builder::new()
        .name(format!("{}: {}", subject.name, contract.name))
        .spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                on_a_paused_clock((contract.check)(subject))
            }));
            // The receiver is gone if the check was given up.
            let _ = send.send(outcome.unwrap_or_else(|panic| Err(message(panic.as_ref()))));
        })
        .expect("a thread");
    let spun = |_| Err(String::from("it never came to rest"));
    receive
        .recv_timeout(Duration::from_secs(60))
        .unwrap_or_else(spun)
}

/// A day: longer than any check lets pass, and over at once when everything else waits forever.
const FOREVER: Duration = Duration::from_secs(86_400);

fn on_a_paused_clock(checking: Checking) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let hung = |_| Err(String::from("something waits forever"));
    runtime.block_on(bounded(async {
        tokio::time::timeout(FOREVER, checking)
            .await
            .unwrap_or_else(hung)
    }))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "panicked: {}",
        text.unwrap_or_else(|| String::from("(as the request asked for)"))
    )
}

fn list(breaches: &[Breach]) -> String {
    breaches
        .iter()
        .map(|breach| format!("\n  {}: {}", breach.contract, breach.seen))
        .collect()
}
