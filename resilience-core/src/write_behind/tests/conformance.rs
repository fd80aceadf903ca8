use std::sync::Arc;

use crate::{
    conformance,
    write_behind::{InProcessWriteBehind, WriteBehindStore},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_passes_the_suite() {
    let store = InProcessWriteBehind::new();
    let flushed = store.clone();
    let store: Arc<dyn WriteBehindStore> = Arc::new(store);
    conformance::write_behind::all(&store, &move || flushed.flush()).await;
}
