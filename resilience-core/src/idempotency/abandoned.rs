//! Claims whose answer is not known and that no caller waits for.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    record::{Claim, Claimed, Holder},
    shared::Shared,
    store::RecordClient,
};

/// A claim without an answer. It may have been granted, and then would block others for a lease: on drop it is given back
/// in the background, unless it was [resolved](Self::resolve).
pub(super) struct AbandonedClaim(Option<Box<OpenClaim>>);

struct OpenClaim {
    shared: Arc<Shared>,
    store: RecordClient,
    key: Arc<str>,
    claim: Arc<Claim>,
}

impl AbandonedClaim {
    pub(super) fn new(
        shared: &Arc<Shared>,
        store: &RecordClient,
        key: &Arc<str>,
        claim: &Arc<Claim>,
    ) -> Self {
        Self(Some(Box::new(OpenClaim {
            shared: Arc::clone(shared),
            store: store.clone(),
            key: Arc::clone(key),
            claim: Arc::clone(claim),
        })))
    }

    /// There is nothing to give back.
    pub(super) fn resolve(&mut self) {
        self.0 = None;
    }
}

impl Drop for AbandonedClaim {
    fn drop(&mut self) {
        if let Some(unanswered) = self.0.take() {
            let shared = Arc::clone(&unanswered.shared);
            shared.spawn(unanswered.give_back());
        }
    }
}

impl OpenClaim {
    /// Repeats the claim under the same owner, and releases what was granted; for as long as the record would be kept, since
    /// work that was never begun would otherwise count as unknown.
    async fn give_back(self: Box<Self>) {
        let Self {
            shared,
            store,
            key,
            claim,
        } = &*self;
        let until = Instant::now() + shared.settings.retention;
        let claimed = store.call_until(until, |store| store.claim(&shared.name, key, claim));
        if let Ok(Claimed::New(grant) | Claimed::Mine(grant)) = claimed.await {
            // The work was not begun: the outcome of an earlier attempt is as unknown as it was.
            let holder = Holder::new(claim, &grant);
            let released =
                store.call_until(until, |store| store.release(&shared.name, key, &holder));
            // Without an answer, the lease ends on its own, and the outcome counts as unknown.
            let _ = released.await;
        }
    }
}
