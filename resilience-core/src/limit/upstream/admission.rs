//! The permit of an upstream in an [`AdmissionLayer`](crate::admission::AdmissionLayer).

use super::Permit;
use crate::{admission, completion::Guard, verdict::Verdict};

/// The verdict on a call says nothing about the upstream's limits: what counts is what a
/// [`Completion`](crate::completion::Completion) reads in the response and hands to
/// [`observe`](Permit::observe).
impl Guard for Permit {
    #[inline(always)]
    fn settle(&mut self, _: Verdict) {}
}

impl admission::Permit for Permit {}
