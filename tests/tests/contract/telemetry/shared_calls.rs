//! Calls that several callers share, as metrics tell of them.

use std::future::pending;

use resilience_core::{Coalesce, Error, Reason, Rejected, conformance::layer::Driven};

type Calls = Coalesce<u32, (), &'static str>;

/// Three callers of a call that fails, and one that waits for as long as what is returned is kept.
pub(crate) async fn everything_happens_to_shared_calls(
    name: &'static str,
) -> impl std::any::Any + use<> {
    let calls: Calls = Coalesce::builder(name).build().unwrap();
    let failing = || async {
        tokio::task::yield_now().await;
        Err("failed")
    };
    let (first, second, third) = tokio::join!(
        calls.run(1, failing),
        calls.run(1, failing),
        calls.run(1, failing)
    );
    assert_eq!(
        (first, second),
        (Err(Error::Service("failed")), Err(Error::Service("failed")))
    );
    let third = third.unwrap_err();
    let reason = third.rejected().map(Rejected::reason);
    assert_eq!(reason, Some(Reason::SharedCallFailed));
    let waiting = calls.clone();
    let mut waits = Driven::new(async move { waiting.run(2, pending).await });
    assert!(!waits.poll());
    (calls, waits)
}
