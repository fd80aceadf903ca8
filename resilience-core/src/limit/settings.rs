//! The checked settings of a rate limit.

use std::sync::Arc;

use super::{Quota, snapshot::Totals};
use crate::{admission::QueueSettings, clock::Clock};

/// The quota of each key.
pub(super) type QuotaOf<K> = Box<dyn Fn(&K) -> Quota + Send + Sync>;

/// Settings that are valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) quota: Quota,
    pub(super) queue: Option<QueueSettings>,
    pub(super) clock: Clock,
    pub(super) totals: Arc<Totals>,
}
