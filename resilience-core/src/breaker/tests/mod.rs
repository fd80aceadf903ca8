//! The breaker from outside: layers, handles, time.

mod layer;
mod model;
