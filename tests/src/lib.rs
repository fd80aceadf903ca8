//! What the cross-crate tests share.

pub mod contract;
pub mod fault_server;
pub mod postgres;
pub mod proxy;
