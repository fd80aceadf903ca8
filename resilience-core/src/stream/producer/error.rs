//! Why events were not published.

use crate::{
    codec::CodecError,
    error::{Rejected, ServiceError},
    fleet::StoreError,
};

/// Why events were not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// An event cannot be encoded. Nothing was published.
    #[error("an event cannot be encoded: {0}")]
    Encode(#[source] CodecError),
    /// The events are too large, too many, or make no sense otherwise. Nothing was published.
    #[error("the events cannot be published: {0}")]
    Invalid(#[source] StoreError),
    /// The broker is unavailable, or the consumers are too far behind. Nothing was published.
    #[error(transparent)]
    Rejected(Rejected),
    /// The broker did not answer in time: the events may or may not be published.
    #[error("unknown whether the events were published: {0}")]
    Unknown(#[source] StoreError),
}

impl From<Rejected> for PublishError {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl ServiceError for PublishError {
    fn as_rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            _ => None,
        }
    }
}
