use std::sync::Arc;

use crate::{
    conformance,
    stream::{InProcessStreams, StreamBroker},
};

#[tokio::test]
async fn the_broker_in_process_is_a_broker() {
    let streams = InProcessStreams::new();
    let broker: Arc<dyn StreamBroker> = Arc::new(streams.clone());
    conformance::stream::all(&broker, &|| streams.flush()).await;
}
