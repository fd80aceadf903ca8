//! Classification of sqlx errors.

use ::sqlx::error::{DatabaseError, ErrorKind};

use super::codes::{self, Condition};
use crate::{
    classify::{Classify, ClassifySelf},
    error::Error,
    verdict::Verdict,
};

/// Classifies [`sqlx::Error`](::sqlx::Error)s in a typed stack, by the [table](super#the-table). `Ok` is a success.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqlxErrors;

impl<Res> Classify<Res, Error<::sqlx::Error>> for SqlxErrors {
    fn classify(&self, result: Result<&Res, &Error<::sqlx::Error>>) -> Verdict {
        result.err().map_or(Verdict::Success, ClassifySelf::verdict)
    }
}

impl ClassifySelf for ::sqlx::Error {
    fn verdict(&self) -> Verdict {
        condition(self).verdict
    }

    fn discards_connection(&self) -> bool {
        condition(self).discard_connection
    }
}

/// Classifies an error of sqlx by the [table](super#the-table) (feature `sqlx`).
#[must_use]
pub fn condition(error: &::sqlx::Error) -> Condition {
    use ::sqlx::Error::*;
    match error {
        PoolTimedOut => Condition::keep(Verdict::transient()),
        Io(_) | Protocol(_) | WorkerCrashed => Condition::discard(Verdict::transient()),
        Database(error) => database(&**error),
        // The database has answered.
        RowNotFound => Condition::keep(Verdict::Success),
        ColumnNotFound(_)
        | ColumnIndexOutOfBounds { .. }
        | ColumnDecode { .. }
        | Decode(_)
        | Encode(_)
        | TypeNotFound { .. }
        | InvalidArgument(_)
        | AnyDriverError(_) => Condition::keep(Verdict::Ignored),
        // The connection is inside a transaction that the caller knows nothing of, or outside of one that it began.
        InvalidSavePointStatement | BeginFailed => Condition::discard(Verdict::Ignored),
        // There is no connection.
        Configuration(_) | PoolClosed => Condition::keep(Verdict::Permanent),
        // `Tls`. Whether a variant that `sqlx` adds can be repeated is unknown.
        _ => Condition::discard(Verdict::Permanent),
    }
}

fn database(error: &dyn DatabaseError) -> Condition {
    match error.kind() {
        ErrorKind::UniqueViolation
        | ErrorKind::ForeignKeyViolation
        | ErrorKind::NotNullViolation
        | ErrorKind::CheckViolation
        | ErrorKind::ExclusionViolation => Condition::keep(Verdict::Success),
        _ => by_code(error),
    }
}

fn by_code(error: &dyn DatabaseError) -> Condition {
    let code = error.code();
    let code = code.as_deref();
    if let Some(number) = mysql_number(error, code) {
        return codes::mysql_error(number, code.unwrap_or_default());
    }
    let about_the_statement = Condition::keep(Verdict::Success);
    match code {
        Some("0A000") if !is_stale_plan(error) => about_the_statement,
        Some(state) if state.len() == 5 => codes::sqlstate(state),
        Some(number) => number
            .parse()
            .map_or(about_the_statement, codes::sqlite_error),
        None => about_the_statement,
    }
}

/// Whether `0A000` says that a cached plan no longer fits its table. The message is in the server's language, the name of
/// the routine is not; the generic trait shows it in `Debug` only.
fn is_stale_plan(error: &dyn DatabaseError) -> bool {
    error.message().contains("cached plan")
        || format!("{error:?}").contains("RevalidateCachedQuery")
}

/// The number that MySQL's driver puts at the front of its message: `1205 (HY000): Lock ..`, or without an SQLSTATE
/// (an error of the handshake) `1040: Too ..`. The generic trait has no other place for it.
fn mysql_number(error: &dyn DatabaseError, code: Option<&str>) -> Option<u16> {
    // A code of another length is SQLite's.
    if code.is_some_and(|code| code.len() != 5) {
        return None;
    }
    let shown = error.to_string();
    let (number, rest) = shown.split_at(shown.find(|c: char| !c.is_ascii_digit())?);
    let is_mysql = match code {
        Some(code) => {
            let rest = rest
                .strip_prefix(" (")
                .and_then(|rest| rest.strip_prefix(code));
            rest.is_some_and(|rest| rest.starts_with("): "))
        }
        None => rest.starts_with(": "),
    };
    is_mysql.then(|| number.parse().ok())?
}

#[cfg(all(test, not(loom)))]
mod tests;
