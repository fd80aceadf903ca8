//! What a connection tells about itself, and what it passes on.

use std::sync::Arc;

/// State of the connection to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The first connection is being made.
    Connecting,
    /// Connected.
    Up,
    /// Not connected, with the reason. A new connection is attempted in the background, except after a shutdown.
    Down(String),
}

/// What a subscriber receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push<'a> {
    Message(&'a [u8]),
    /// The subscription is established on a new connection: messages may have been lost before.
    Restored,
}

/// Called on the connection's own task: must be quick.
pub(super) type Subscriber = Arc<dyn Fn(Push<'_>) + Send + Sync>;
