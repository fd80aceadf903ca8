//! What a call costs that every layer lets through: ours and the peers', in one run.
//!
//! ```text
//! cargo bench -p resilience-benches                  a line per subject, tables with ratios, the targets
//! cargo bench -p resilience-benches -- --figures     one JSON line per figure, for scripts
//! cargo bench -p resilience-benches -- --json        one JSON line per subject
//! cargo bench -p resilience-benches -- --only TEXT   subjects whose name contains TEXT (with =TEXT: is TEXT)
//! cargo test -p resilience-benches                   what the peers do when it matters (`make peers`), takes no times
//! ```
//!
//! How it is measured:
//!
//! - Every subject guards the same bare service: `service_fn` with a ready future. What is reported is what the subject
//!   adds to it.
//! - Rounds are interleaved: each round runs some thousand calls of every subject, one after the other, starting
//!   with another one each time, so that a noisy minute hits all of them alike. The figure is the median of the rounds.
//!   Rounds in which the thread had to wait for a processor (Linux tells) are left out, as long as enough are left.
//! - One task, on tokio's current-thread runtime; each call is `poll_ready`, `call`, await.
//! - Allocations are counted in a process of their own (`count-allocations`), times are taken with the plain allocator.
//! - Two cores: two threads, each with its own clone of the service, hammer one shared object; the figure is their
//!   throughput together over that of one thread alone. 2.0 is perfect, below 1.0 a second core makes it slower.
//!
//! Peers are configured as their own documentation does it, with the same semantics as far as they offer them; each
//! choice is written beside the code in [`subjects`]. Where one of our layers does more than a peer's, it does so in
//! these figures too.

pub mod figures;
pub mod measure;
pub mod report;
pub mod subject;
pub mod subjects;
