//! What the record is to say about an attempt that has ended.

use std::time::Duration;

use bytes::Bytes;

use super::{
    outcome::{Disposition, Outcomes},
    record::{Completion, Holder, Previous},
    settings::{Settings, ms},
    shared::Shared,
    store::validate::MAX_MS,
};
use crate::{error::Pattern, sealing::SealFailed};

/// The last step of an attempt, as the store takes it.
pub(super) enum Settlement {
    Done {
        plain: Option<Bytes>,
        completion: Completion,
    },
    /// With what is known of the previous attempt.
    Release(Previous),
    Unknown,
}

/// What the record is to say, not yet sealed.
pub(super) enum Decided {
    Done {
        plain: Option<Bytes>,
        ttl: Option<Duration>,
    },
    Release,
    Unknown,
}

impl Settlement {
    /// How long the record is kept, from when it says so.
    pub(super) fn kept(&self, settings: &Settings) -> Duration {
        match self {
            Self::Done { completion, .. } => Duration::from_millis(completion.ttl_ms),
            Self::Release(_) | Self::Unknown => settings.retention,
        }
    }

    /// The holder as the store is to see it.
    pub(super) fn holder(&self, holder: &Holder) -> Holder {
        let previous = match self {
            Self::Release(previous) => *previous,
            Self::Done { .. } | Self::Unknown => holder.previous,
        };
        Holder {
            previous,
            ..holder.clone()
        }
    }
}

impl Decided {
    /// Decides about `result`, and encodes it if it is to be recorded.
    pub(super) fn about<R>(
        outcomes: &impl Outcomes<R>,
        result: &R,
        max_bytes: usize,
        name: &str,
    ) -> Self {
        let ttl = match outcomes.decide(result) {
            Disposition::Release => return Self::Release,
            Disposition::Unknown => return Self::Unknown,
            Disposition::Record => None,
            Disposition::RecordFor(ttl) => Some(ttl),
        };
        let why = match outcomes.encode(result) {
            Ok(bytes) if bytes.len() <= max_bytes => {
                let plain = Some(bytes);
                return Self::Done { plain, ttl };
            }
            Ok(bytes) => format!("{} bytes are more than {max_bytes}", bytes.len()),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name,
            why,
            "the work counts as done, but its outcome is not kept"
        );
        Self::Done { plain: None, ttl }
    }

    /// Seals the outcome of `key`. `previous` is what is known of the previous attempt by now.
    pub(super) fn seal(
        self,
        shared: &Shared,
        key: &str,
        previous: Previous,
    ) -> Result<Settlement, SealFailed> {
        let (plain, ttl) = match self {
            Self::Release => return Ok(Settlement::Release(previous)),
            Self::Unknown => return Ok(Settlement::Unknown),
            Self::Done { plain, ttl } => (plain, ttl),
        };
        let ttl_ms = ms(ttl.unwrap_or(shared.settings.ttl)).min(MAX_MS);
        let associated_data = shared.associated_data(key);
        let outcome = shared
            .sealing()
            .seal(plain.as_deref(), ttl_ms, &associated_data)?;
        Ok(Settlement::Done {
            plain,
            completion: Completion { outcome, ttl_ms },
        })
    }
}
