//! HTTP over real sockets: servers and networks that break in every way, and programs that talk to each other.

mod deploys;
mod end_to_end;
mod faults;
mod lost_reply;
mod network;
mod outages;
mod rig;
mod tls;
mod two_halves;
