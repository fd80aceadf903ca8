//! Errors: of connecting, and of commands, distinguished by what to do next.

use std::{fmt, time::Duration};

use resilience_core::{InvalidConfig, fleet::StoreError};

use crate::url::InvalidUrl;

/// Why [`Redis::connect`](crate::Redis::connect) or [`RedisBuilder::connect`](crate::RedisBuilder::connect) cannot start
/// connecting. A server that does not answer is not such an error. Shows no user, password or query of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL cannot work.
    Url(InvalidUrl),
    /// A setting cannot work, or there is no tokio runtime (field `connect`).
    Config(InvalidConfig),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConnectError {}

impl From<InvalidUrl> for ConnectError {
    fn from(error: InvalidUrl) -> Self {
        Self::Url(error)
    }
}

impl From<InvalidConfig> for ConnectError {
    fn from(error: InvalidConfig) -> Self {
        Self::Config(error)
    }
}

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

/// The code of a refusal (`READONLY`, `OOM`, ..). Before Redis 7.0, what a command inside a script is refused with is a part
/// of the text of an `ERR`.
pub(crate) fn code(error: &redis::RedisError) -> Option<&str> {
    match error.code()? {
        "ERR" => error.detail().and_then(inner_code).or(Some("ERR")),
        code => Some(code),
    }
}

/// Finds the code in `Error running script (call to f_..): @user_script:1: @user_script: 1: -READONLY You can't write ..`.
fn inner_code(detail: &str) -> Option<&str> {
    let parts = detail.strip_prefix("Error running script")?.split(": ");
    let words =
        parts.filter_map(|part| part.trim_start_matches('-').split_ascii_whitespace().next());
    let mut codes = words.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase()));
    codes.next()
}

/// Age of a connection from which a refusal with this code is a reason to look for another server: this one is no
/// master, or not ready, or persistently refuses writes.
pub(crate) fn elsewhere_after(code: &str) -> Option<Duration> {
    match code {
        "READONLY" | "MASTERDOWN" | "LOADING" => Some(Duration::from_secs(2)),
        "NOREPLICAS" | "MISCONF" | "OOM" => Some(Duration::from_secs(10)),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use redis::RedisError;

    use super::*;

    /// The error that a client makes of a line of the protocol.
    fn error(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let value = value.expect("an error is a value");
        value.extract_error().expect_err("an error")
    }

    const REFUSALS: [(&str, &str); 6] = [
        ("READONLY", "You can't write against a read only replica."),
        ("LOADING", "Redis is loading the dataset in memory"),
        (
            "MASTERDOWN",
            "Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        ),
        ("NOREPLICAS", "Not enough good replicas to write."),
        (
            "MISCONF",
            "Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        ),
        ("OOM", "command not allowed when used memory > 'maxmemory'."),
    ];

    #[test]
    fn a_refusal_inside_the_text_of_a_script_error_is_the_refusal() {
        let script = "f_2597e0576dd54eb42864e3a1b8392b96e018bcc3";
        for (expected, text) in REFUSALS {
            for line in [
                // Redis 7: of a command, and of a command in a script.
                format!("{expected} {text}"),
                format!("{expected} {text} script: {script}, on @user_script:1."),
                // Redis 6.2 and 6.0.
                format!(
                    "ERR Error running script (call to {script}): @user_script:1: @user_script: 1: -{expected} {text}"
                ),
            ] {
                let error = error(&line);
                assert_eq!(code(&error), Some(expected), "{line}");
                assert!(elsewhere_after(expected).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn other_errors_are_what_they_say() {
        for (line, expected) in [
            ("ERR unknown command 'READONLY'", "ERR"),
            ("ERR -READONLY inside of another text", "ERR"),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                "WRONGTYPE",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:3: attempt to index a nil value",
                "ERR",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:1: WRONGTYPE Operation against a key",
                "WRONGTYPE",
            ),
            ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT"),
        ] {
            let error = error(line);
            assert_eq!(code(&error), Some(expected), "{line}");
            assert_eq!(elsewhere_after(expected), None, "{line}");
        }
    }
}
