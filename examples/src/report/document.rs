//! The result for machines.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer};

use super::{Report, Run, Side};
use crate::{
    events::Handled,
    script::{Phase, Script},
    stats::Latency,
};

/// The JSON document. What does not apply is `null`; rates are shares of 1, durations milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    script_ms: Option<ByPhase<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_late_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain: Option<SideDocument<'a>>,
    guarded: SideDocument<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<SideDocument<'a>>,
}

#[derive(Debug, Serialize)]
struct SideDocument<'a> {
    settings: &'a str,
    requests: u64,
    succeeded: u64,
    failed: u64,
    rejected: u64,
    failures: &'a BTreeMap<String, u64>,
    rejections: &'a BTreeMap<String, u64>,
    success_rate: Option<f64>,
    /// Over all calls, whatever came of them.
    #[serde(flatten)]
    all: Millis,
    succeeded_latency: Millis,
    not_succeeded_latency: Millis,
    waited_in_vain_ms: f64,
    retries: u64,
    upstream_requests: Option<ByPhase<u64>>,
    upstream_requests_total: Option<u64>,
    phases: Option<ByPhase<PhaseDocument>>,
    notice_ms: Option<f64>,
    recovery_ms: Option<f64>,
    /// Of clients with breakers, in the storm.
    #[serde(flatten)]
    fleet: Option<FleetDocument>,
    /// In the storm.
    #[serde(skip_serializing_if = "Option::is_none")]
    payments: Option<PaymentsDocument>,
    /// Of a service that is called by a greedy tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<TenantsDocument>,
    /// In the storm.
    #[serde(skip_serializing_if = "Option::is_none")]
    readers: Option<ReadersDocument>,
    /// Of services that exchange orders as events, in the storm.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<EventsDocument>,
    /// Of shared breakers.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreDocument<'a>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct FleetDocument {
    all_open_ms: Option<f64>,
    all_closed_ms: Option<f64>,
    recovery_probes: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PaymentsDocument {
    asked: u64,
    told_made: u64,
    took_effect_once: u64,
    took_effect_repeatedly: u64,
    most_effects: u32,
    told_made_but_not: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct TenantsDocument {
    greedy_sent: u64,
    greedy_admitted: u64,
    greedy_allowed: u64,
    modest_refused: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct ReadersDocument {
    reads: u64,
    loads: u64,
    p99_ms: Option<f64>,
    changes: u64,
    outdated: u64,
    in_outage: u64,
    answered_in_outage: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct EventsDocument {
    acknowledges: &'static str,
    published: u64,
    took_effect_once: u64,
    took_effect_repeatedly: u64,
    lost: u64,
    unfinished: u64,
    refused_late: u64,
    processes_killed: u64,
}

#[derive(Debug, Serialize)]
struct StoreDocument<'a> {
    name: &'a str,
    degraded: bool,
    away_ms: f64,
    reason: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PhaseDocument {
    requests: u64,
    success_rate: Option<f64>,
    failed: u64,
    rejected: u64,
    #[serde(flatten)]
    latency: Millis,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Millis {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

impl From<Option<Latency>> for Millis {
    fn from(latency: Option<Latency>) -> Self {
        Self {
            p50_ms: latency.map(|latency| millis(latency.p50)),
            p99_ms: latency.map(|latency| millis(latency.p99)),
            max_ms: latency.map(|latency| millis(latency.max)),
        }
    }
}

impl EventsDocument {
    fn of(handled: &Handled) -> Self {
        Self {
            acknowledges: handled.acknowledges.name(),
            published: handled.published,
            took_effect_once: handled.once,
            took_effect_repeatedly: handled.repeatedly,
            lost: handled.lost,
            unfinished: handled.unfinished,
            refused_late: handled.refused,
            processes_killed: handled.killed,
        }
    }
}

/// Microseconds are as exact as it gets.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A value for each phase, written as an object in the order of the script.
#[derive(Clone, Debug)]
struct ByPhase<T>(Vec<T>);

impl<T: Serialize> Serialize for ByPhase<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Phase::ALL.map(Phase::name).into_iter().zip(&self.0))
    }
}

impl<'a> Document<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let (url, rate) = match &report.run {
            Run::Storm { rate, .. } => (None, *rate),
            Run::Url { url, rate } => (Some(url.as_str()), *rate),
        };
        let (seed, script, instances, late) = match report.run {
            Run::Storm {
                script,
                seed,
                instances,
                lateness,
                ..
            } => (Some(seed), Some(script), Some(instances), Some(lateness)),
            Run::Url { .. } => (None, None, None, None),
        };
        let lengths = |script: Script| Phase::ALL.map(|phase| millis(script.length(phase)));
        Self {
            interrupted: report.interrupted,
            url,
            rate,
            seed,
            script_ms: script.map(|script| ByPhase(lengths(script).into())),
            instances,
            start_late_p99_ms: late.map(millis),
            plain: report.plain.as_ref().map(SideDocument::of),
            guarded: SideDocument::of(&report.guarded),
            shared: report.shared.as_ref().map(SideDocument::of),
        }
    }
}

impl<'a> SideDocument<'a> {
    fn of(side: &'a Side) -> Self {
        let summary = &side.summary;
        let phases: Vec<_> = summary
            .phases
            .iter()
            .map(|phase| PhaseDocument {
                requests: phase.calls.total(),
                success_rate: phase.calls.success_rate(),
                failed: phase.calls.failed,
                rejected: phase.calls.rejected,
                latency: phase.latency.into(),
            })
            .collect();
        Self {
            settings: &side.settings,
            requests: summary.calls.total(),
            succeeded: summary.calls.ok,
            failed: summary.calls.failed,
            rejected: summary.calls.rejected,
            failures: &summary.failures,
            rejections: &summary.rejections,
            success_rate: summary.calls.success_rate(),
            all: summary.all.into(),
            succeeded_latency: summary.ok.into(),
            not_succeeded_latency: summary.not_ok.into(),
            waited_in_vain_ms: millis(summary.in_vain),
            retries: side.retries,
            upstream_requests: side.upstream.map(|served| ByPhase(served.into())),
            upstream_requests_total: side.upstream.map(|served| served.iter().sum()),
            phases: (!phases.is_empty()).then_some(ByPhase(phases)),
            notice_ms: summary.notice.map(millis),
            recovery_ms: summary.recovery.map(millis),
            fleet: side.fleet.map(|fleet| FleetDocument {
                all_open_ms: fleet.all_open.map(millis),
                all_closed_ms: fleet.all_closed.map(millis),
                recovery_probes: fleet.probes,
            }),
            payments: side.paid.map(|paid| PaymentsDocument {
                asked: paid.asked,
                told_made: paid.told,
                took_effect_once: paid.once,
                took_effect_repeatedly: paid.repeatedly,
                most_effects: paid.most,
                told_made_but_not: paid.lost,
            }),
            tenants: side.tenants.map(|held| TenantsDocument {
                greedy_sent: held.sent,
                greedy_admitted: held.admitted,
                greedy_allowed: held.allowed,
                modest_refused: held.modest_refused,
            }),
            readers: side.readers.map(|served| ReadersDocument {
                reads: served.reads,
                loads: served.loads,
                p99_ms: served.p99.map(millis),
                changes: served.changes,
                outdated: served.outdated,
                in_outage: served.in_outage,
                answered_in_outage: served.answered_in_outage,
            }),
            events: side.events.iter().map(EventsDocument::of).collect(),
            store: side.store.as_ref().map(|store| StoreDocument {
                name: &store.name,
                degraded: !store.away.is_zero(),
                away_ms: millis(store.away),
                reason: store.reason.as_deref(),
            }),
        }
    }
}
