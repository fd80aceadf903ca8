//! Why writes were not done, and reads have no answer.

use crate::{
    codec::CodecError,
    error::{Rejected, ServiceError},
    fleet::StoreError,
};

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The value cannot be encoded. Nothing was written.
    #[error("the value cannot be encoded: {0}")]
    Encode(#[source] CodecError),
    /// The key or the value is too large, or the write makes no sense otherwise. Nothing was written.
    #[error("the write cannot be stored: {0}")]
    Invalid(#[source] StoreError),
    /// The store is unavailable ([`StoreUnreachable`](crate::Reason::StoreUnreachable)), or the sink is too far behind
    /// ([`SinkBehind`](crate::Reason::SinkBehind)). Nothing was written.
    #[error(transparent)]
    Rejected(Rejected),
    /// The store refused the write. Nothing was written.
    #[error("the store refused the write: {0}")]
    Refused(#[source] StoreError),
    /// The store did not answer in time: the write may or may not be stored, and sunk.
    #[error("unknown whether the write was stored: {0}")]
    Unknown(#[source] StoreError),
}

impl From<Rejected> for WriteError {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl ServiceError for WriteError {
    fn as_rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            _ => None,
        }
    }
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The store did not answer: whether the key has a value that is not sunk yet is not known.
    #[error("unknown whether the key is sunk: {0}")]
    Store(#[source] StoreError),
    /// The value that is not sunk yet cannot be read: another release has written it.
    #[error("the value cannot be decoded: {0}")]
    Decode(#[source] CodecError),
}
