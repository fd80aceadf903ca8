//! The fencing token of the call that is being polled, for the code inside of it.

use std::cell::Cell;

thread_local! {
    static FENCE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Returns the [fencing token](super::FleetPermit::fence) of the call that this code runs in.
///
/// `None` outside of the [layer](super::FleetBulkhead::layer) of a fleet's bulkhead, and when the innermost one
/// admitted the call without the store. Tasks that the call spawns do not inherit it: read it before.
///
/// ```
/// use resilience_core::{FleetBulkhead, Rejected, bulkhead::fleet::{InProcessBulkheads, current_fence}};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let reports = FleetBulkhead::builder("reports").store(InProcessBulkheads::new()).max_concurrent(16).build()?;
/// let service = ServiceBuilder::new()
///     .layer(reports.layer())
///     .service(service_fn(|()| async { Ok::<_, Rejected>(current_fence()) }));
/// assert!(service.oneshot(()).await?.is_some());
/// assert_eq!(current_fence(), None);
/// # Ok(()) }
/// ```
#[must_use]
pub fn current_fence() -> Option<u64> {
    FENCE.get()
}

/// Restores the outer token when it is dropped.
pub(super) struct Entered(Option<u64>);

pub(super) fn enter(fence: Option<u64>) -> Entered {
    Entered(FENCE.replace(fence))
}

impl Drop for Entered {
    fn drop(&mut self) {
        FENCE.set(self.0);
    }
}
