#![doc = include_str!("../README.md")]

pub mod answers;
pub mod authority;
pub mod cache_scene;
mod child_process;
pub mod clock_steps;
pub mod fake_redis;
pub mod fault_server;
pub mod lasting;
pub mod limit_script;
pub mod local_values;
pub mod pgbouncer;
pub mod postgres;
pub mod process_control;
pub mod proxy;
pub mod redis;
pub mod redis_clock;
pub mod redis_cluster;
pub mod redis_connection;
pub mod redis_scene;
pub mod redis_sentinel;
pub mod stream_scene;
pub mod torture;
pub mod until;

/// The README's code, compiled and run as a newcomer would.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
