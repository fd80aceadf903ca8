//! What there is to see: every row of the table of metrics, and the events with their fields.

mod caches;
mod counters;
mod events;
mod inbox;
mod keys;
mod limits;
mod metrics;
mod outboxes;
mod prometheus;
mod requests;
mod shared_calls;
mod streams;
mod table;
mod write_behinds;

use std::time::Duration;

use resilience_core::conformance::layer::{Ask, Plan, Stack};
use tower::{BoxError, Service, ServiceExt};

const MOMENT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(3600);

/// Makes one call; whether it was answered.
async fn once<S>(service: S, plan: Plan) -> bool
where
    S: Service<Ask, Response = u32, Error = BoxError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Stack::new(service).oneshot(Ask::from(plan)).await.is_ok()
}
