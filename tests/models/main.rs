//! Protocols, model-checked: every order of events in a small world, over the records that run in production.

mod cache;
mod delivery;
mod explore;
mod fleet;
mod key;
