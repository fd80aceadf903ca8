//! "I put my own stack together. Does it matter which layer goes outside which?"
//!
//! It does, and this program shows by how much. It sends the same calls through the same layers in different orders,
//! to a dependency that hangs, refuses or is merely busy, and prints what came of it. Time is simulated (tokio's
//! paused clock, which every layer follows), so minutes pass in milliseconds and the numbers are the same every time.
//!
//! ```text
//! cargo run -p resilience-examples --example layer_order
//! ```
//!
//! The order that comes out of it, outermost first, and the one that `resilience_http::client` has:
//!
//! ```text
//! deadline -> retry -> bulkhead -> circuit breaker -> timeout per attempt -> the call itself
//! ```

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use comfy_table::{Table, presets};
use resilience_core::{
    Bulkhead, CircuitBreaker, Error, Retry, RetryBudget, Timeout,
    retry::{self, Always, Backoff},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

type BoxError = Box<dyn StdError + Send + Sync>;

/// What the dependency says when it is there and does not work.
#[derive(Clone, Copy, Debug)]
struct Refused;

/// What became of some calls.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    ok: u32,
    failed: u32,
    rejected: u32,
    /// The longest that a caller had to wait.
    longest: Duration,
    /// How many requests reached the dependency.
    reached: u32,
}

fn main() -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        println!("{}", timeout_and_retry().await?.table);
        println!("{}", breaker_and_retry().await?.table);
        println!("{}", bulkhead_and_breaker().await?.table);
        println!("{}", bulkhead_and_retry().await?.table);
        Ok(())
    })
}

/// The tallies of one lesson, in the order of its rows, and the table that shows them.
struct Lesson<const N: usize> {
    #[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
    tallies: [Tally; N],
    table: String,
}

/// A timeout bounds what it is around. Around the retry it bounds the caller's wait, but the first attempt may use it
/// up. Inside the retry it bounds each attempt, but the sum has no bound. Have both.
async fn timeout_and_retry() -> Result<Lesson<3>, BoxError> {
    let whole = Timeout::new("whole call", ms(500))?;
    let attempt = Timeout::new("attempt", ms(150))?;
    let retry = patient_retry(ms(100))?;
    // The first attempt of every tenth call hangs, and of the last thirty calls, every attempt.
    let hangs = move |call: u32| retry::attempt() == 1 && call % 10 == 9 || call >= 270;
    let dependency = |reached: &Arc<AtomicU32>| {
        let (reached, calls) = (Arc::clone(reached), Arc::new(AtomicU32::new(0)));
        service_fn(move |()| {
            reached.fetch_add(1, Relaxed);
            let first = u32::from(retry::attempt() == 1);
            let hang = hangs(calls.fetch_add(first, Relaxed) + first - 1);
            async move {
                if hang {
                    std::future::pending::<()>().await;
                }
                sleep(ms(20)).await;
                Ok::<_, Error<Refused>>(())
            }
        })
    };
    let reached = [(); 3].map(|()| Arc::new(AtomicU32::new(0)));
    let stacks = ServiceBuilder::new();
    let retrying = || retry.layer().replay(Always);
    let outside = stacks
        .clone()
        .layer(whole.layer())
        .layer(retrying())
        .service(dependency(&reached[0]));
    let inside = stacks
        .clone()
        .layer(retrying())
        .layer(attempt.layer())
        .service(dependency(&reached[1]));
    let both = stacks
        .layer(whole.layer())
        .layer(retrying())
        .layer(attempt.layer())
        .service(dependency(&reached[2]));
    let tallies = [
        one_by_one(outside, 300, &reached[0]).await,
        one_by_one(inside, 300, &reached[1]).await,
        one_by_one(both, 300, &reached[2]).await,
    ];
    Ok(lesson(
        "Timeout and retry. One call in ten hangs at first, and of 300 calls the last 30 for good.",
        [
            "timeout 500 ms > retry",
            "retry > timeout 150 ms",
            "500 ms > retry > 150 ms",
        ],
        tallies,
    ))
}

/// A breaker inside the retry sees every attempt, and opens after ten. A breaker outside sees one failure where the
/// dependency saw three requests.
async fn breaker_and_retry() -> Result<Lesson<2>, BoxError> {
    let breaker = || {
        CircuitBreaker::builder("dependency")
            .consecutive_failures(10)
            .build()
    };
    let (outer, inner) = (breaker()?, breaker()?);
    let retry = patient_retry(ms(10))?;
    let reached = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let outside = ServiceBuilder::new()
        .layer(outer.layer())
        .layer(retry.layer().replay(Always))
        .service(refusing(&reached[0]));
    let inside = ServiceBuilder::new()
        .layer(retry.layer().replay(Always))
        .layer(inner.layer())
        .service(refusing(&reached[1]));
    let tallies = [
        one_by_one(outside, 100, &reached[0]).await,
        one_by_one(inside, 100, &reached[1]).await,
    ];
    Ok(lesson(
        "Circuit breaker and retry. The dependency refuses everything; the breaker opens at ten failures in a row.",
        ["breaker > retry", "retry > breaker"],
        tallies,
    ))
}

/// Time spent in our own queue says nothing about the dependency. A breaker outside the bulkhead takes it for
/// slowness, and shuts out a dependency that does its work.
async fn bulkhead_and_breaker() -> Result<Lesson<2>, BoxError> {
    let breaker = || {
        CircuitBreaker::builder("dependency")
            .slow_calls(ms(200), 0.3)
            .build()
    };
    let bulkhead = || {
        Bulkhead::builder("dependency")
            .max_concurrent(10)
            .queue(100, ms(2000))
            .build()
    };
    let (outer, inner) = (breaker()?, breaker()?);
    let reached = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let outside = ServiceBuilder::new()
        .layer(outer.layer())
        .layer(bulkhead()?.layer())
        .service(working(&reached[0]));
    let inside = ServiceBuilder::new()
        .layer(bulkhead()?.layer())
        .layer(inner.layer())
        .service(working(&reached[1]));
    let tallies = [
        spread(outside, 200, ms(5), &reached[0]).await,
        spread(inside, 200, ms(5), &reached[1]).await,
    ];
    Ok(lesson(
        "Bulkhead and circuit breaker. A burst for a dependency that is well and takes 100 ms; slow is above 200 ms.",
        ["breaker > bulkhead", "bulkhead > breaker"],
        tallies,
    ))
}

/// A retry that waits needs no place. With the bulkhead outside, calls that wait for their next attempt keep
/// everybody else out.
async fn bulkhead_and_retry() -> Result<Lesson<2>, BoxError> {
    let bulkhead = || Bulkhead::builder("dependency").max_concurrent(10).build();
    let retry = patient_retry(ms(500))?;
    // Every other request is refused, at once.
    let dependency = |reached: &Arc<AtomicU32>| {
        let reached = Arc::clone(reached);
        service_fn(move |()| {
            let n = reached.fetch_add(1, Relaxed);
            async move {
                sleep(ms(10)).await;
                if n.is_multiple_of(2) {
                    Err(Error::Service(Refused))
                } else {
                    Ok(())
                }
            }
        })
    };
    let reached = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let outside = ServiceBuilder::new()
        .layer(bulkhead()?.layer())
        .layer(retry.layer().replay(Always))
        .service(dependency(&reached[0]));
    let inside = ServiceBuilder::new()
        .layer(retry.layer().replay(Always))
        .layer(bulkhead()?.layer())
        .service(dependency(&reached[1]));
    let tallies = [
        spread(outside, 200, ms(10), &reached[0]).await,
        spread(inside, 200, ms(10), &reached[1]).await,
    ];
    Ok(lesson(
        "Bulkhead and retry. Every other request is refused; a retry waits 500 ms; ten places.",
        ["bulkhead > retry", "retry > bulkhead"],
        tallies,
    ))
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Up to three attempts. The budget is not the point here, so there is enough of it.
fn patient_retry(wait: Duration) -> Result<Retry, BoxError> {
    let backoff = Backoff::fixed(wait);
    let budget = RetryBudget::unlimited();
    Ok(Retry::builder("dependency")
        .max_attempts(3)
        .backoff(backoff)
        .budget(budget)
        .build()?)
}

fn refusing(reached: &Arc<AtomicU32>) -> impl Call {
    let reached = Arc::clone(reached);
    service_fn(move |()| {
        reached.fetch_add(1, Relaxed);
        async { Err(Error::Service(Refused)) }
    })
}

fn working(reached: &Arc<AtomicU32>) -> impl Call {
    let reached = Arc::clone(reached);
    service_fn(move |()| {
        reached.fetch_add(1, Relaxed);
        async {
            sleep(ms(100)).await;
            Ok(())
        }
    })
}

/// The services of this program.
trait Call:
    Service<(), Response = (), Error = Error<Refused>, Future: Send> + Clone + Send + 'static
{
}

impl<S> Call for S where
    S: Service<(), Response = (), Error = Error<Refused>, Future: Send> + Clone + Send + 'static
{
}

/// Each call starts when the one before has ended.
async fn one_by_one(stack: impl Call, calls: u32, reached: &AtomicU32) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..calls {
        tally.add(timed(stack.clone()).await);
    }
    tally.reached = reached.load(Relaxed);
    tally
}

/// A call starts every `gap`, whatever becomes of the others.
async fn spread(stack: impl Call, calls: u32, gap: Duration, reached: &AtomicU32) -> Tally {
    let mut running = JoinSet::new();
    for _ in 0..calls {
        running.spawn(timed(stack.clone()));
        sleep(gap).await;
    }
    let mut tally = Tally::default();
    for ended in running.join_all().await {
        tally.add(ended);
    }
    tally.reached = reached.load(Relaxed);
    tally
}

async fn timed(stack: impl Call) -> (Result<(), Error<Refused>>, Duration) {
    let start = Instant::now();
    (stack.oneshot(()).await, start.elapsed())
}

impl Tally {
    fn add(&mut self, (result, took): (Result<(), Error<Refused>>, Duration)) {
        match result {
            Ok(()) => self.ok += 1,
            // A timeout is a failure of the dependency, told by a layer.
            Err(Error::Rejected(no)) if !no.verdict().is_failure() => self.rejected += 1,
            Err(_) => self.failed += 1,
        }
        self.longest = self.longest.max(took);
    }
}

fn lesson<const N: usize>(title: &str, orders: [&str; N], tallies: [Tally; N]) -> Lesson<N> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "order (outside > inside)",
        "ok",
        "failed",
        "rejected",
        "requests sent",
        "longest wait",
    ]);
    for (order, tally) in orders.iter().zip(&tallies) {
        table.add_row([
            (*order).to_owned(),
            tally.ok.to_string(),
            tally.failed.to_string(),
            tally.rejected.to_string(),
            tally.reached.to_string(),
            format!("{} ms", tally.longest.as_millis()),
        ]);
    }
    Lesson {
        tallies,
        table: format!("{title}\n{table}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_both_timeouts_bound_the_wait_and_rescue_the_call() {
        let [outside, inside, both] = timeout_and_retry().await.unwrap().tallies;
        assert!(outside.ok < both.ok, "{outside:?} {both:?}");
        assert!(
            inside.longest > ms(500) && both.longest <= ms(501),
            "{inside:?} {both:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_inside_the_retry_opens_after_a_third_of_the_requests() {
        let [outside, inside] = breaker_and_retry().await.unwrap().tallies;
        assert_eq!((outside.reached, inside.reached), (30, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_outside_the_bulkhead_shuts_out_a_dependency_that_is_well() {
        let [outside, inside] = bulkhead_and_breaker().await.unwrap().tallies;
        assert!(
            outside.rejected > 50 && inside.rejected == 0,
            "{outside:?} {inside:?}"
        );
        assert_eq!(inside.ok, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bulkhead_outside_the_retry_is_full_of_calls_that_wait() {
        let [outside, inside] = bulkhead_and_retry().await.unwrap().tallies;
        assert!(
            outside.rejected > 50 && inside.rejected == 0,
            "{outside:?} {inside:?}"
        );
    }
}
