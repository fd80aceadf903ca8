//! The permit of a rate limit.

use std::fmt;

use crate::{admission::Permit, completion::Guard, verdict::Verdict};

/// The permit of a call: the tokens of one that waited, until it is started. Dropped before, it puts them back. A call that
/// passes at once holds nothing.
#[must_use = "dropped, it puts the tokens back"]
pub struct HeldTokens(Option<PutBack>);

type PutBack = Box<dyn FnOnce() + Send + Sync>;

impl HeldTokens {
    /// The permit of a call that passes at once.
    pub(super) const NONE: Self = Self(None);

    /// The permit of a call that waited; `put_back` runs unless the call is started.
    pub(super) fn new(put_back: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(put_back)))
    }
}

impl Guard for HeldTokens {
    #[inline(always)]
    fn settle(&mut self, _: Verdict) {}
}

impl Permit for HeldTokens {
    #[inline(always)]
    fn started(&mut self) {
        if self.0.is_some() {
            self.0 = None;
        }
    }
}

impl Drop for HeldTokens {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(put_back) = self.0.take() {
            put_back();
        }
    }
}

impl fmt::Debug for HeldTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldTokens")
            .field("waited", &self.0.is_some())
            .finish_non_exhaustive()
    }
}
