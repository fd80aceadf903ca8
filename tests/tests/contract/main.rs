//! What holds for every layer: the contracts (the harness proven on layers that break them, then run over the toolkit), the
//! metrics and events, and the table of traps.

mod client;
mod harness;
mod interplay;
mod layers;
mod server;
mod stacks;
mod telemetry;
mod traps;
mod types;
