//! Waiting for a condition, with a bound, instead of sleeping and hoping.

use std::{future::Future, time::Duration};

/// Longest pause between two questions.
const MOST: Duration = Duration::from_millis(10);

/// Asks until `condition` holds: after 1 ms, and then after ever longer pauses, up to 10 ms.
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
        let mut pause = Duration::from_millis(1);
        while !condition().await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST);
        }
    };
    assert!(
        tokio::time::timeout(bound, asking).await.is_ok(),
        "not within {bound:?}: {what}"
    );
}
