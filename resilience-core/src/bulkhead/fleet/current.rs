//! The fence of the call that is being polled, for what runs inside of it.

use std::cell::Cell;

use super::permit::FleetPermit;

thread_local! {
    static FENCE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The [fence](FleetPermit::fence) of the call that this code runs in, if a [layer](super::FleetBulkhead::layer) of a
/// fleet's bulkhead is around it, and the innermost one was given its places by the store. Tasks that the call spawns
/// do not inherit it: read it before.
///
/// ```
/// use resilience_core::{Rejected, bulkhead::fleet::{FleetBulkhead, InProcessBulkheads, current_fence}};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let reports = FleetBulkhead::builder("reports", InProcessBulkheads::new()).max_concurrent(16).build()?;
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

/// Until it is dropped.
pub(super) struct Entered(Option<u64>);

pub(super) fn enter(permit: Option<&FleetPermit>) -> Entered {
    Entered(FENCE.replace(permit.and_then(FleetPermit::fence)))
}

impl Drop for Entered {
    fn drop(&mut self) {
        FENCE.set(self.0);
    }
}
