//! What a [`LimitRequests`](super::LimitRequests) is set to.

use std::sync::Arc;

use http::request::Parts;

use super::{
    decision::RequestLimit,
    fields::LimitHeaders,
    key::{LimitKey, MissingKey},
};

pub(super) struct Settings<L: RequestLimit> {
    pub(super) key: LimitKey,
    pub(super) missing_key: MissingKey,
    pub(super) cost: Option<Cost<L>>,
    pub(super) headers: LimitHeaders,
}

pub(super) type Cost<L> = Arc<dyn Fn(&Parts) -> <L as RequestLimit>::Price + Send + Sync>;

impl<L: RequestLimit> Settings<L> {
    pub(super) fn new() -> Self {
        Self {
            key: LimitKey::whole(),
            missing_key: MissingKey::default(),
            cost: None,
            headers: LimitHeaders::new(),
        }
    }
}

impl<L: RequestLimit> Clone for Settings<L> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            missing_key: self.missing_key,
            cost: self.cost.clone(),
            headers: self.headers.clone(),
        }
    }
}
