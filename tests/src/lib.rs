//! What the cross-crate tests share.

pub mod contract;
pub mod postgres;
