//! HTTP over real sockets: servers and networks that break in every way, and programs that talk to each other.

mod end_to_end;
mod faults;
mod lost_reply;
mod network;
mod rig;
mod tls;
