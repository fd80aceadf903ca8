//! Requests that take effect once, around axum: in memory where that is enough, on a real socket
//! where clients disconnect.

mod hang_up;
mod identity;
mod keeping;
mod negotiation;
mod outcomes;
mod places;
mod refusing;
mod replaying;
mod rig;
