//! Work that outlives its call, and holds the permits of the call until it ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::portable::{Permits, Portable, take};

/// The permits of the calls around the code that called [`held`], held by work that may outlive them.
///
/// A permit is given back when its call has ended and all `HeldPermits` that hold it are dropped.
/// Clones hold the same permits.
#[derive(Clone)]
#[must_use = "dropped, it holds nothing: move it into the work"]
pub struct HeldPermits(Option<Arc<Permits>>);

/// Holds the permits of all calls around the running code, so that work that outlives these calls
/// keeps their places in the bulkheads until it ends.
///
/// For work that is handed to something else than a task or a thread, e.g. a queue in this process:
/// for those, [`carry`] and [`carry_fn`] do it. It has to be called by the code of the call (in
/// `call`, or while its future is polled), and before the work is handed over. Without a permit
/// around, it holds nothing.
///
/// What is held are permits of bulkheads, of one process or of a fleet (their leases are renewed for
/// as long), and of policies that say so by [`Portable`]. Tokens of rate limits are spent, and are not
/// held.
///
/// **Cost**: a few allocations.
///
/// ```
/// use resilience_core::{Bulkhead, Rejected, admission};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let bulkhead = Bulkhead::builder("reports").max_concurrent(2).build()?;
/// let (queue, mut jobs) = tokio::sync::mpsc::channel(8);
/// let service = ServiceBuilder::new()
///     .layer(bulkhead.layer())
///     .service(service_fn(|page: u32| {
///         let (queue, held) = (queue.clone(), admission::held());
///         async move { Ok::<_, Rejected>(queue.send((page, held)).await.is_ok()) }
///     }));
/// service.oneshot(7).await?;
///
/// assert_eq!(bulkhead.snapshot().in_flight, 1); // the job's
/// drop(jobs.recv().await);
/// assert_eq!(bulkhead.snapshot().in_flight, 0);
/// # Ok(()) }
/// ```
pub fn held() -> HeldPermits {
    HeldPermits(take())
}

/// Wraps work for a task of its own, so that it holds the permits of the call that spawns it:
/// `tokio::spawn(admission::carry(work))`. They are given back when the work ends, by whatever way, or
/// with the call, whichever is later.
///
/// Without it, a caller that goes away (a client that hangs up, a deadline) gives its place in a
/// bulkhead to the next one while its work goes on, and the work in progress is no longer bounded. See
/// [`held`] for what is held. The deadline of the call is not carried, nor is anything else: see
/// [`inherit`](crate::deadline::inherit). Work that is waited for by nothing should have a time limit
/// of its own, or it holds the permits for as long as it hangs.
///
/// ```
/// use resilience_core::{Bulkhead, Rejected, admission};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # async fn send(_: u32) {}
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let bulkhead = Bulkhead::builder("mail").max_concurrent(2).build()?;
/// let service = ServiceBuilder::new()
///     .layer(bulkhead.layer())
///     .service(service_fn(|to: u32| async move {
///         tokio::spawn(admission::carry(send(to)));
///         Ok::<_, Rejected>("accepted")
///     }));
/// service.oneshot(7).await?;
/// assert_eq!(bulkhead.snapshot().in_flight, 1);
/// # Ok(()) }
/// ```
pub fn carry<F>(work: F) -> Carry<F> {
    held().carry(work)
}

/// Wraps work for a thread, as [`carry`] does for a task:
/// `tokio::task::spawn_blocking(admission::carry_fn(work))`.
///
/// A blocking job cannot be stopped: it goes on after the deadline of its call, and holds a thread.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Bulkhead, Rejected, Timeout, admission};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # fn resize(image: Vec<u8>) -> Vec<u8> { image }
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let timeout = Timeout::new("images", Duration::from_millis(200))?;
/// let bulkhead = Bulkhead::builder("images").max_concurrent(2).build()?;
/// let service = ServiceBuilder::new()
///     .layer(timeout.layer())
///     .layer(bulkhead.layer())
///     .service(service_fn(|image: Vec<u8>| async move {
///         let job = tokio::task::spawn_blocking(admission::carry_fn(move || resize(image)));
///         job.await.map_err(Box::<dyn std::error::Error + Send + Sync>::from)
///     }));
/// assert_eq!(service.oneshot(vec![7]).await?, [7]);
/// # Ok(()) }
/// ```
pub fn carry_fn<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let mut held = Portable::new(held());
    move || {
        let _scope = held.enter();
        work()
    }
}

impl HeldPermits {
    /// Wraps work that holds these permits until it ends. Work that it hands on in turn can carry them
    /// further.
    pub fn carry<F>(self, work: F) -> Carry<F> {
        let held = self.0.is_some().then(|| Portable::new(self));
        Carry {
            work: Some(work),
            held,
        }
    }
}

impl fmt::Debug for HeldPermits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldPermits").finish_non_exhaustive()
    }
}

pin_project! {
    /// Work that holds permits until it ends. Made by [`carry`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Carry<F> {
        // Before the permits, so that it is dropped before they are given back.
        #[pin]
        work: Option<F>,
        held: Option<Portable<HeldPermits>>,
    }
}

impl<F: Future> Future for Carry<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let work = this.work.as_mut().as_pin_mut();
        let work = work.expect("polled after completion");
        let polled = {
            let _scope = this.held.as_mut().map(Portable::enter);
            work.poll(cx)
        };
        if polled.is_ready() {
            this.work.set(None);
            *this.held = None;
        }
        polled
    }
}

impl<F> fmt::Debug for Carry<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry")
            .field("ended", &self.work.is_none())
            .field("holds", &self.held.is_some())
            .finish()
    }
}
