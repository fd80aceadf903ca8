//! Each example holds itself to what it says, in tests of its own. All in one program: linking is what costs.

#![allow(dead_code, reason = "what only `main` uses")]

#[path = "../examples/axum_service.rs"]
mod axum_service;
#[path = "../examples/cached_database/main.rs"]
mod cached_database;
#[path = "../examples/cached_service/main.rs"]
mod cached_service;
#[path = "../examples/guarded_database.rs"]
mod guarded_database;
#[path = "../examples/guarded_transaction.rs"]
mod guarded_transaction;
#[path = "../examples/layer_order.rs"]
mod layer_order;
#[path = "../examples/order_events.rs"]
mod order_events;
#[path = "../examples/outbound_client.rs"]
mod outbound_client;
#[path = "../examples/payment_service.rs"]
mod payment_service;
#[path = "../examples/queue_consumer.rs"]
mod queue_consumer;
#[path = "../examples/shared_breaker.rs"]
mod shared_breaker;
#[path = "../examples/tenant_quotas.rs"]
mod tenant_quotas;
#[path = "../examples/write_behind.rs"]
mod write_behind;
