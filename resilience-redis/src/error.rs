//! What can go wrong between a call and Redis, told apart by what to do next.

use std::fmt;

use resilience_core::fleet::StoreError;

/// Why a store could not be asked.
///
/// None of these is an error of the call that is being guarded: the layers go on with what they know locally.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no connection at the moment; one is being made in the background.
    Down,
    /// Redis has not answered several times in a row, and is left alone for a moment. Nothing was sent.
    CircuitOpen,
    /// No answer within the budget. The command may have been carried out.
    TimedOut,
    /// The connection broke while the command was under way. The command may have been carried out.
    Lost(String),
    /// An answer came that was not the one to this command, and is not believed; the connection is remade. The command may
    /// have been carried out.
    Misplaced,
    /// Redis answered with an error: out of memory, read-only, wrong type, no permission, loading.
    Refused(String),
    /// Redis answered, but not what the script returns: another version of this toolkit, or a foreign key.
    Unexpected(String),
}

impl CommandError {
    /// Whether the command may have taken effect although no answer came.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Lost(_) | Self::Misplaced)
    }

    pub(crate) fn from_redis(error: &redis::RedisError) -> Self {
        if error.is_timeout() {
            Self::TimedOut
        } else if is_broken(error) {
            Self::Lost(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

/// Whether the connection that `error` came over is of no further use.
pub(crate) fn is_broken(error: &redis::RedisError) -> bool {
    error.is_connection_dropped() || error.is_connection_refusal() || error.is_unrecoverable_error()
}

/// Whether the server turned out to be a replica: somebody else is the master now.
pub(crate) fn is_read_only(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly)
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("no connection to Redis"),
            Self::CircuitOpen => f.write_str("Redis did not answer lately and is left alone"),
            Self::TimedOut => f.write_str("no answer from Redis in time"),
            Self::Lost(error) => write!(f, "connection to Redis lost: {error}"),
            Self::Misplaced => f.write_str("the answer from Redis belongs to another command"),
            Self::Refused(error) => write!(f, "Redis refused: {error}"),
            Self::Unexpected(answer) => write!(f, "unexpected answer from Redis: {answer}"),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<CommandError> for StoreError {
    fn from(error: CommandError) -> Self {
        Self::new(error.to_string(), error.is_ambiguous())
    }
}
