//! How the values of snapshots are serialized.

use std::time::Duration;

use serde::Serializer;

/// Serializes a duration, if there is one, as seconds.
pub(crate) fn seconds<T, S>(time: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Copy + Into<Option<Duration>>,
    S: Serializer,
{
    match (*time).into() {
        Some(time) => serializer.serialize_f64(time.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}
