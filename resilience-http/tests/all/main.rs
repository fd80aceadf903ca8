//! The layers of a server and the guarded client, around axum and plain services. One program,
//! since linking is expensive.
#![cfg(feature = "server")]

#[cfg(all(feature = "axum", feature = "client"))]
mod idempotency;
#[cfg(all(feature = "axum", feature = "client"))]
mod rate_limit;
mod server;
mod server_on_the_wire;
