//! The contracts of every layer: the harness proven on layers that break them, then run over the toolkit.

mod client;
mod company;
mod harness;
mod layers;
mod server;
mod stacks;
mod types;
