//! Classification of sqlx errors.

use ::sqlx::error::{DatabaseError, ErrorKind};

use super::codes;
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
        match self {
            Self::Io(_) | Self::PoolTimedOut | Self::Protocol(_) | Self::WorkerCrashed => {
                Verdict::transient()
            }
            Self::Database(error) => database(&**error),
            // The database has answered.
            Self::RowNotFound => Verdict::Success,
            Self::ColumnNotFound(_)
            | Self::ColumnIndexOutOfBounds { .. }
            | Self::ColumnDecode { .. }
            | Self::Decode(_)
            | Self::Encode(_)
            | Self::TypeNotFound { .. }
            | Self::InvalidArgument(_)
            | Self::AnyDriverError(_)
            | Self::InvalidSavePointStatement
            | Self::BeginFailed => Verdict::Ignored,
            // `Tls`, `Configuration`, `PoolClosed`: nothing that goes through this pool will work. Whether a variant that
            // `sqlx` adds can be repeated is unknown.
            _ => Verdict::Permanent,
        }
    }
}

fn database(error: &dyn DatabaseError) -> Verdict {
    match error.kind() {
        ErrorKind::UniqueViolation
        | ErrorKind::ForeignKeyViolation
        | ErrorKind::NotNullViolation
        | ErrorKind::CheckViolation
        | ErrorKind::ExclusionViolation => Verdict::Success,
        _ => by_code(error),
    }
}

fn by_code(error: &dyn DatabaseError) -> Verdict {
    let code = error.code();
    let code = code.as_deref();
    if let Some(verdict) = codes::mysql_number(error, code).and_then(codes::mysql) {
        return verdict;
    }
    match code {
        Some(state) if state.len() == 5 => codes::sqlstate(state),
        Some(number) => number.parse().map_or(Verdict::Success, codes::sqlite),
        None => Verdict::Success,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
