//! Waiting for a condition, with a bound, instead of sleeping and hoping.

use std::{future::Future, time::Duration};

/// Asks again and again, 2 ms apart, until `condition` holds.
///
/// # Panics
///
/// When it does not hold within `bound`.
pub async fn eventually<F, Fut>(what: &str, bound: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(bound, asking).await.is_ok(),
        "not within {bound:?}: {what}"
    );
}
