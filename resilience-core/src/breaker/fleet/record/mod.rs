//! The shared record of one breaker: pure, time goes in as milliseconds on the store's clock. Moments are kept in the
//! record's own time ([`RecordClock`]), so that nothing lasts longer than it was asked for when that clock is set back.

mod messages;

use std::{collections::BTreeMap, sync::Arc};

use crate::{breaker::snapshot::State, fleet::RecordClock};

pub use self::messages::{
    BreakerView, Change, Counts, FleetOverride, FleetState, LeaseAnswer, OverrideKind, Report,
};

/// Number of buckets in the fleet's window.
pub const BUCKETS: u64 = 10;

/// The shared state of one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BreakerRecord {
    pub(super) clock: RecordClock,
    epoch: u64,
    state: FleetState,
    since: u64,
    /// Zero: no end.
    until: u64,
    trips: u32,
    by: String,
    cause: String,
    active_override: Option<(FleetOverride, u64)>,
    buckets: BTreeMap<u64, Counts>,
    bucket_ms: u64,
    pub(super) instances: BTreeMap<Arc<str>, Instance>,
    /// Who finds the dependency failing, and until when that counts.
    pub(super) failing: BTreeMap<Arc<str>, u64>,
    leases: BTreeMap<Arc<str>, u64>,
    probes: Counts,
}

/// An instance as of its last report.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    sequence: u64,
    pub(super) live_until: u64,
    pub(super) reported: u64,
    pub(super) voter: Arc<str>,
    pub(super) state: Option<State>,
}

impl BreakerRecord {
    /// Merges a report. One with a sequence number that was merged before adds nothing, nor does one of another
    /// epoch; the instance is live all the same.
    pub fn report(&mut self, report: &Report, now: u64) {
        let now = self.time(now);
        let bucket_ms = report.bucket_ms.max(1);
        if self.bucket_ms != bucket_ms {
            self.regroup(bucket_ms);
        }
        self.sweep(now);
        let known = self
            .instances
            .get(&report.instance)
            .map_or(0, |instance| instance.sequence);
        let current = report.epoch == self.epoch;
        if current && report.sequence > known {
            self.buckets
                .entry(now / self.bucket_ms)
                .or_default()
                .add(report.counts);
        }
        if current && report.failing {
            let until = now + (self.bucket_ms * BUCKETS).min(report.live_ms);
            self.failing.insert(Arc::clone(&report.voter), until);
        } else {
            self.failing.remove(&report.voter);
        }
        let instance = Instance {
            sequence: report.sequence.max(known),
            live_until: now + report.live_ms,
            reported: now,
            voter: Arc::clone(&report.voter),
            state: report.state,
        };
        self.instances
            .insert(Arc::clone(&report.instance), instance);
    }

    /// Enters a state, unless the record has changed since. Returns whether it did.
    pub fn change(&mut self, change: &Change, now: u64) -> bool {
        if change.expected != self.epoch {
            return false;
        }
        let now = self.time(now);
        self.enter(change.to, change.lasting_ms, now);
        self.trips = change.trips;
        self.by.clone_from(&change.by);
        self.cause.clone_from(&change.cause);
        true
    }

    /// Brings back what an instance knows when the record was lost. Nothing happens if the record knows better.
    pub fn restore(&mut self, known: &BreakerView, now: u64) -> bool {
        if known.epoch <= self.epoch {
            return false;
        }
        let now = self.time(now);
        self.state = known.state;
        self.since = now.saturating_sub(known.age_ms);
        self.until = match known.state {
            FleetState::Closed | FleetState::HalfOpen => 0,
            // With nothing left it is over, not without end.
            FleetState::Open | FleetState::RampUp(_) => now + known.remaining_ms,
        };
        self.trips = known.trips;
        self.by.clone_from(&known.by);
        self.cause.clone_from(&known.cause);
        self.active_override = known.active_override.clone().map(|active_override| {
            let until = active_override
                .expires_ms
                .map_or(u64::MAX, |left| now + left);
            (active_override, until)
        });
        self.leases.clear();
        self.probes = Counts::default();
        self.epoch = known.epoch;
        true
    }

    /// Asks for one of `budget` probes, to be settled within `lease_ms`. An open state whose time is over becomes
    /// half-open.
    pub fn lease(&mut self, lease: &Arc<str>, budget: u32, lease_ms: u64, now: u64) -> LeaseAnswer {
        let now = self.time(now);
        if self.state == FleetState::Open && now >= self.until {
            self.enter(FleetState::HalfOpen, 0, now);
        }
        if self.state != FleetState::HalfOpen || self.active_override(now).is_some() {
            return LeaseAnswer::Denied;
        }
        self.leases.retain(|_, until| *until > now);
        let taken = self.leases.len() as u64 + self.probes.total();
        if !self.leases.contains_key(lease) && taken >= u64::from(budget) {
            return LeaseAnswer::Denied;
        }
        self.leases.insert(Arc::clone(lease), now + lease_ms);
        LeaseAnswer::Granted { epoch: self.epoch }
    }

    /// Settles a probe: `Some(true)` succeeded, `Some(false)` failed, `None` gives it back. False, and nothing
    /// happens, if the lease is not (or no longer) held under this epoch.
    pub fn settle(&mut self, lease: &str, epoch: u64, success: Option<bool>, now: u64) -> bool {
        let now = self.time(now);
        if epoch != self.epoch || self.leases.remove(lease).is_none_or(|until| until <= now) {
            return false;
        }
        match success {
            Some(true) => self.probes.success += 1,
            Some(false) => self.probes.failure += 1,
            None => {}
        }
        true
    }

    /// Sets an override, or clears the one in force.
    pub fn set_override(&mut self, active_override: Option<FleetOverride>, by: &str, now: u64) {
        let now = self.time(now);
        self.active_override = active_override.map(|active_override| {
            let until = active_override
                .expires_ms
                .map_or(u64::MAX, |left| now + left);
            (active_override, until)
        });
        by.clone_into(&mut self.by);
        self.epoch = next_epoch(self.epoch, now);
    }

    /// Closes, with an empty window and no override. The epoch goes on.
    pub fn reset(&mut self, by: &str, cause: &str, now: u64) {
        let now = self.time(now);
        self.enter(FleetState::Closed, 0, now);
        self.trips = 0;
        self.active_override = None;
        by.clone_into(&mut self.by);
        cause.clone_into(&mut self.cause);
    }

    /// The view of the record at `now`.
    #[must_use]
    pub fn view(&self, now: u64) -> BreakerView {
        let now = self.clock.read(now).now();
        let mut window = Counts::default();
        if let Some(now_bucket) = now.checked_div(self.bucket_ms) {
            let oldest = (now_bucket + 1).saturating_sub(BUCKETS);
            self.buckets
                .range(oldest..)
                .for_each(|(_, counts)| window.add(*counts));
        }
        BreakerView {
            epoch: self.epoch,
            state: self.state,
            remaining_ms: self.until.saturating_sub(now),
            age_ms: now.saturating_sub(self.since),
            trips: self.trips,
            window,
            live: count(self.instances.values().map(|one| one.live_until), now),
            failing: count(self.failing.values().copied(), now),
            leased: u32::try_from(self.leases.values().filter(|until| **until > now).count())
                .unwrap_or(u32::MAX),
            probes: self.probes,
            active_override: self.active_override(now),
            by: self.by.clone(),
            cause: self.cause.clone(),
        }
    }

    /// Notes the time of a step that may write.
    const fn time(&mut self, shown: u64) -> u64 {
        self.clock = self.clock.read(shown);
        self.clock.now()
    }

    /// Moves the counts to the nearest buckets of another length: instances differ in their window while a new one is
    /// rolled out.
    fn regroup(&mut self, bucket_ms: u64) {
        for (bucket, counts) in std::mem::take(&mut self.buckets) {
            let nearest = (bucket * self.bucket_ms + bucket_ms / 2) / bucket_ms;
            self.buckets.entry(nearest).or_default().add(counts);
        }
        self.bucket_ms = bucket_ms;
    }

    /// Drops what no view can show any longer.
    fn sweep(&mut self, now: u64) {
        if let Some(now_bucket) = now.checked_div(self.bucket_ms) {
            self.buckets = self
                .buckets
                .split_off(&(now_bucket + 1).saturating_sub(BUCKETS));
        }
        // A silent instance's sequence number is remembered for as long as a report of it could still be repeated.
        let window = self.bucket_ms * BUCKETS;
        self.instances
            .retain(|_, instance| instance.live_until + window > now);
        self.failing.retain(|_, until| *until > now);
    }

    fn enter(&mut self, state: FleetState, lasting_ms: u64, now: u64) {
        self.epoch = next_epoch(self.epoch, now);
        self.state = state;
        self.since = now;
        self.until = if lasting_ms == 0 { 0 } else { now + lasting_ms };
        self.leases.clear();
        self.probes = Counts::default();
        // What was seen before says nothing about the time after.
        self.buckets.clear();
        self.failing.clear();
    }

    fn active_override(&self, now: u64) -> Option<FleetOverride> {
        let (active_override, until) = self.active_override.as_ref()?;
        (*until > now).then(|| FleetOverride {
            expires_ms: active_override.expires_ms.map(|_| until - now),
            ..active_override.clone()
        })
    }
}

/// How many of these moments are still to come.
fn count(moments: impl Iterator<Item = u64>, now: u64) -> u64 {
    moments.filter(|&until| until > now).count() as u64
}

/// Time as a floor: the epoch goes on upwards even when the record and every instance that knew it are gone.
fn next_epoch(epoch: u64, now: u64) -> u64 {
    (epoch + 1).max(now)
}
