//! Errors of commands, distinguished by what to do next.

use std::fmt;

use resilience_core::fleet::StoreError;

/// Why a command to Redis has no answer that counts.
///
/// Not an error of the call that is being guarded: the patterns apply their
/// [outage policy](resilience_core::fleet::OnOutage).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no connection at the moment; one is attempted in the background, except after a shutdown. Nothing was sent.
    Down,
    /// The connection's circuit breaker is open, because several commands in a row had no answer. Nothing was sent.
    CircuitOpen,
    /// No answer within the budget. The command may have been executed.
    TimedOut,
    /// The connection broke while the command was in progress. The command may have been executed.
    Lost(String),
    /// The answer belongs to another command and is not believed; the connection is remade. The command may have been
    /// executed.
    Misplaced,
    /// Redis answered with an error: out of memory, read-only, wrong type, no permission, loading.
    Refused(String),
    /// Redis answered something that the script does not return: another version of this toolkit, or a key of another
    /// program.
    Unexpected(String),
}

impl CommandError {
    /// Whether the command may have been executed although no answer came.
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

/// Whether the connection that `error` came over is broken.
pub(crate) fn is_broken(error: &redis::RedisError) -> bool {
    error.is_connection_dropped() || error.is_connection_refusal() || error.is_unrecoverable_error()
}

/// Whether the server is a replica: another one is the master.
pub(crate) fn is_read_only(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly)
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("no connection to Redis"),
            Self::CircuitOpen => {
                f.write_str("Redis did not answer several times in a row: not asked")
            }
            Self::TimedOut => f.write_str("no answer from Redis within the budget"),
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
