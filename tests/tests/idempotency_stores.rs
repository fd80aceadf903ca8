//! Every store of idempotency records, held to one suite.

use std::sync::Arc;

use resilience_core::idempotency::{IdempotencyStore, InProcess};
use resilience_tests::idempotency_conformance;

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let records = InProcess::new();
    let store: Arc<dyn IdempotencyStore> = Arc::new(records.clone());
    idempotency_conformance::all(&store, &|| records.flush()).await;
}
