//! The list of streams that operators see: producers and consumers enter theirs.

use std::time::Duration;

use tokio::time::timeout;

use super::broker::StreamClient;

/// Time after which a stream is entered again.
pub(super) const INTERVAL: Duration = Duration::from_secs(3_600);

/// Enters a stream. Takes no longer than one step of the broker may. A failure is not worth an event: it is repeated.
pub(super) async fn announce(client: &StreamClient, stream: &str) {
    if let Some(announced) = client.store().announce(stream) {
        let _ = timeout(client.budget(), announced).await;
    }
}
