//! Why a call was not admitted, and for how long.

use std::time::Duration;

use super::{
    head::{Head, moment},
    rules::OpenRules,
};
use crate::{clock::Moment, error::Reason};

/// Why a call was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// When a call may be admitted, if nothing happens before.
    pub(super) until: Option<Moment>,
    /// A call with one of the fleet's probes would be admitted.
    pub(super) needs_lease: bool,
    /// When the caller may try again.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn open(head: &Head, now: Moment) -> Self {
        let until = moment(&head.open_until);
        Self {
            reason: Reason::Open,
            until,
            needs_lease: false,
            retry_after: left(until, now),
        }
    }

    pub(super) fn forced_open(head: &Head, now: Moment) -> Self {
        let until = moment(&head.override_until);
        Self {
            reason: Reason::ForcedOpen,
            until,
            needs_lease: false,
            retry_after: left(until, now),
        }
    }

    pub(super) fn no_probe_left(head: &Head, open: &OpenRules, now: Moment) -> Self {
        let until = moment(&head.wait_until);
        let short = open.while_probing();
        Self {
            reason: Reason::NoProbeLeft,
            until,
            needs_lease: false,
            retry_after: Some(left(until, now).map_or(short, |left| left.min(short))),
        }
    }

    /// The fleet has to grant a probe first.
    pub(super) fn needs_lease(open: &OpenRules) -> Self {
        Self {
            reason: Reason::NoProbeLeft,
            until: None,
            needs_lease: true,
            retry_after: Some(open.while_probing()),
        }
    }

    pub(super) fn ramping_up(head: &Head, now: Moment) -> Self {
        let until = moment(&head.stage_until);
        let left = left(until, now).unwrap_or_default();
        Self {
            reason: Reason::RampingUp,
            until,
            needs_lease: false,
            retry_after: Some(left.min(Duration::from_secs(1))),
        }
    }
}

fn left(until: Option<Moment>, now: Moment) -> Option<Duration> {
    until.map(|until| until.since(now))
}
