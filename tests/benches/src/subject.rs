//! What is measured: a service behind one layer or several, and how calls are driven through it.

// The benches measure real time, which is what std's clock is for.
#![allow(clippy::disallowed_types)]

use std::{
    convert::Infallible,
    fmt, fs,
    future::{Ready, poll_fn, ready},
    hint::black_box,
    io::Read as _,
    time::{Duration, Instant},
};

use tower::Service;

/// The request of every subject: small, `Copy`, so that cloning it costs no subject anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request(pub u64);

/// The response of every subject.
#[derive(Clone, Copy, Debug)]
pub struct Response(pub u64);

/// The bare service's own error. It never happens, but no layer can know that.
#[derive(Clone, Copy, Debug)]
pub struct Failure;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failure")
    }
}

impl std::error::Error for Failure {}

/// The key of the `n`th request where there are `keys`: all of them in turn, in an order that is not that of their
/// places in memory.
#[must_use]
pub const fn key_in_turn(n: u64, keys: u64) -> u64 {
    n.wrapping_mul(7_919) % keys
}

/// The answer of the bare service, for an error type of the layers' choice.
pub fn answer<E>(request: Request) -> Ready<Result<Response, E>> {
    ready(Ok(Response(request.0)))
}

/// One caller: makes a number of calls, one after the other, and returns how long that took. The first argument is the number of
/// calls to make before the clock starts.
pub type Caller = Box<dyn FnMut(u64, u64) -> Took + Send>;

/// How long some calls took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// From the first to the last.
    pub time: Duration,
    /// The thread had to wait for a processor on the way: the time says more about the machine than about the calls.
    pub disturbed: bool,
}

/// One row of the tables.
pub struct Subject {
    /// Stable: figures and tests refer to it.
    pub name: &'static str,
    /// Whether it is one object that many threads share, worth a run on two cores.
    pub shared: bool,
    caller: Box<dyn Fn() -> Caller>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subject").field(&self.name).finish()
    }
}

impl Subject {
    /// A service whose clones share what is measured.
    pub fn new<S>(name: &'static str, service: S) -> Self
    where
        S: Service<Request, Response = Response> + Clone + Send + 'static,
        S::Error: fmt::Debug,
    {
        Self::made(name, move || service.clone())
    }

    /// A service that cannot be cloned, or whose clones share nothing.
    pub fn made<S>(name: &'static str, make: impl Fn() -> S + 'static) -> Self
    where
        S: Service<Request, Response = Response> + Send + 'static,
        S::Error: fmt::Debug,
    {
        Self {
            name,
            shared: false,
            caller: Box::new(move || caller(make())),
        }
    }

    /// Also measured on two cores.
    #[must_use]
    pub fn on_two_cores(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Another caller of the same subject.
    #[must_use]
    pub fn caller(&self) -> Caller {
        (self.caller)()
    }
}

fn caller<S>(mut service: S) -> Caller
where
    S: Service<Request, Response = Response> + Send + 'static,
    S::Error: fmt::Debug,
{
    let runtime = runtime();
    Box::new(move |warm_up, calls| {
        runtime.block_on(async {
            call(&mut service, warm_up).await;
            let waited = waited();
            let start = Instant::now();
            call(&mut service, calls).await;
            let time = start.elapsed();
            Took {
                time,
                // Waking up takes a moment of waiting too: a lock that puts threads to sleep is no disturbance.
                disturbed: self::waited().saturating_sub(waited) > time / 20,
            }
        })
    })
}

/// The loop that is measured.
#[inline]
async fn call<S>(service: &mut S, calls: u64)
where
    S: Service<Request, Response = Response>,
    S::Error: fmt::Debug,
{
    for n in 0..calls {
        poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
        let response = service.call(black_box(Request(n))).await;
        black_box(response.expect("the bare service never fails").0);
    }
}

/// For how long this thread has been ready to run and another one had the processor. Linux measures it; elsewhere nothing
/// seems to wait.
fn waited() -> Duration {
    // On the stack: allocations are counted around this.
    let mut stat = [0; 96];
    let mut nanos = || {
        let mut file = fs::File::open("/proc/thread-self/schedstat").ok()?;
        let length = file.read(&mut stat).ok()?;
        let stat = str::from_utf8(&stat[..length]).ok()?;
        stat.split_whitespace().nth(1)?.parse().ok()
    };
    Duration::from_nanos(nanos().unwrap_or(0))
}

/// A runtime with timers and nothing else, driven by the thread that calls.
///
/// # Panics
///
/// If the system has no room for it.
#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

/// The floor that every figure is measured from.
#[must_use]
pub fn bare() -> Subject {
    Subject::new(BARE, tower::service_fn(answer::<Infallible>))
}

/// The name of the bare service's row.
pub const BARE: &str = "bare service";
