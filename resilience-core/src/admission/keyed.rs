//! A policy for each key.

use std::{fmt, hash::Hash};

use super::{Admission, Admit};
use crate::keyed::{Family, Member};

/// Policy that asks the member of a [`Family`] for the request's key.
pub struct PerKey<K, H: Member, F> {
    family: Family<K, H>,
    key: F,
}

impl<K, H: Member, F> PerKey<K, H, F> {
    pub(crate) const fn new(family: Family<K, H>, key: F) -> Self {
        Self { family, key }
    }
}

impl<Req, K, H, F> Admit<Req> for PerKey<K, H, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    H: Member + Admit<Req>,
    F: Fn(&Req) -> K + Clone,
{
    type Permit = H::Permit;
    type Wait = H::Wait;

    #[inline]
    fn admit(&self, request: &Req) -> Admission<H::Permit, H::Wait> {
        let key = (self.key)(request);
        self.family.with(&key, |member| member.admit(request))
    }
}

impl<K, H: Member, F: Clone> Clone for PerKey<K, H, F> {
    fn clone(&self) -> Self {
        Self {
            family: self.family.clone(),
            key: self.key.clone(),
        }
    }
}

impl<K, H: Member, F> fmt::Debug for PerKey<K, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PerKey").field(&self.family).finish()
    }
}
