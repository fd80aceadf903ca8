//! What is written down while the storm runs, and the figures that are made of it.
//!
//! Every call leaves one [`Sample`]; a [`Summary`] is computed from the samples alone, the same way for all clients.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use resilience_core::{Pattern, Reason, Rejected};
use tokio::time::Instant;

use crate::script::{Phase, Script};

/// How one call ended, as its caller saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A good status, and the body read to its end.
    Ok,
    /// The call was made and came to nothing.
    Failed(Failure),
    /// A layer said no before the call was made (or made again).
    Rejected(Pattern, Reason),
}

impl From<&Rejected> for Outcome {
    /// A call given up at its deadline has kept its caller waiting: that is a failure, no rejection.
    fn from(rejected: &Rejected) -> Self {
        match rejected.pattern() {
            Pattern::Deadline => Self::Failed(Failure::Timeout),
            pattern => Self::Rejected(pattern, rejected.reason()),
        }
    }
}

/// In what way a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer in time.
    Timeout,
    /// No connection.
    Connect,
    /// The connection broke before the whole answer was there.
    Broken,
    /// An answer that says so.
    Status(u16),
    /// The load generator had too many calls in flight to start it.
    NotSent,
}

impl Failure {
    /// The name, as the table and the JSON have it.
    pub(crate) fn name(self) -> Cow<'static, str> {
        match self {
            Self::Timeout => "timeout".into(),
            Self::Connect => "connect".into(),
            Self::Broken => "broken".into(),
            Self::Status(status) => format!("status_{status}").into(),
            Self::NotSent => "not_sent".into(),
        }
    }
}

/// One call. Times are offsets from the start of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// When it was due.
    pub(crate) at: Duration,
    /// From when it was due to its end.
    pub(crate) latency: Duration,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

impl Sample {
    fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    fn ended(&self) -> Duration {
        self.at + self.latency
    }
}

/// Takes down the samples of one client while it runs.
#[derive(Debug)]
pub(crate) struct Recorder {
    epoch: Instant,
    script: Option<Script>,
    samples: Mutex<Vec<Sample>>,
    in_flight: AtomicUsize,
    /// How long after it was due each call was started.
    late: Mutex<Vec<Duration>>,
}

/// What there is to see at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Live {
    pub(crate) in_flight: usize,
    pub(crate) ok: usize,
    pub(crate) failed: usize,
    pub(crate) rejected: usize,
    /// The share of successes among the calls that ended in the last second.
    pub(crate) recent: Option<f64>,
}

impl Recorder {
    /// Counts from `epoch`; all clients share one. Without a script (the user's own upstream) nothing is known of
    /// phases.
    pub(crate) fn start(epoch: Instant, script: Option<Script>) -> Self {
        Self {
            epoch,
            script,
            samples: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            late: Mutex::default(),
        }
    }

    /// When the clock was started.
    pub(crate) const fn epoch(&self) -> Instant {
        self.epoch
    }

    /// A call that was due `at` sets out; it is in flight until what this returns is dropped.
    pub(crate) fn begin(&self, at: Duration) -> Flying<'_> {
        let late = self.epoch.elapsed().saturating_sub(at);
        let mut all = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(late);
        drop(all);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Flying(self)
    }

    /// A call that was due `at` ended at `end` (offsets from the start).
    pub(crate) fn end(&self, at: Duration, end: Duration, outcome: Outcome) {
        let latency = end.saturating_sub(at);
        self.lock().push(Sample {
            at,
            latency,
            outcome,
        });
    }

    /// A look at the running counts.
    pub(crate) fn live(&self) -> Live {
        let now = self.epoch.elapsed();
        let horizon = now.saturating_sub(Duration::from_secs(1));
        let mut live = Live {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            ..Live::default()
        };
        let (mut recent, mut recent_ok) = (0_u32, 0_u32);
        for sample in self.lock().iter() {
            match sample.outcome {
                Outcome::Ok => live.ok += 1,
                Outcome::Failed(_) => live.failed += 1,
                Outcome::Rejected(..) => live.rejected += 1,
            }
            if sample.ended() >= horizon {
                recent += 1;
                recent_ok += u32::from(sample.is_ok());
            }
        }
        live.recent = (recent > 0).then(|| f64::from(recent_ok) / f64::from(recent));
        live
    }

    /// By how much the latest hundredth of the calls were started too late, at least: the fault of the machine, and of
    /// no client. Latencies contain it.
    pub(crate) fn lateness(&self) -> Duration {
        let mut all = self
            .late
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        all.sort_unstable();
        let last_hundredth = all.len().saturating_sub(1 + all.len() / 100);
        all.get(last_hundredth).copied().unwrap_or_default()
    }

    /// A copy of all samples so far.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.lock().clone()
    }

    /// The figures so far.
    pub(crate) fn summary(&self) -> Summary {
        Summary::of(self.samples(), self.script)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Flying<'a>(&'a Recorder);

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A counter per phase.
#[derive(Debug, Default)]
pub(crate) struct PerPhase([AtomicU64; Phase::ALL.len()]);

impl PerPhase {
    pub(crate) fn add(&self, phase: Phase) {
        self.0[phase as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, phase: Phase) -> u64 {
        self.0[phase as usize].load(Ordering::Relaxed)
    }
}

/// How long callers waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Latency {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Option<Self> {
        // Microseconds up to an hour, three digits: an error of at most 0.1 %.
        let mut histogram = Histogram::<u64>::new_with_max(3_600_000_000, 3).ok()?;
        for sample in samples {
            let micros = u64::try_from(sample.latency.as_micros()).unwrap_or(u64::MAX);
            histogram.saturating_record(micros);
        }
        let quantile = |q| Duration::from_micros(histogram.value_at_quantile(q));
        (!histogram.is_empty()).then(|| Self {
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: Duration::from_micros(histogram.max()),
        })
    }
}

/// Calls by their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) rejected: u64,
}

impl Counts {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut counts = Self::default();
        for sample in samples {
            match sample.outcome {
                Outcome::Ok => counts.ok += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Rejected(..) => counts.rejected += 1,
            }
        }
        counts
    }

    /// All of them.
    pub(crate) const fn total(self) -> u64 {
        self.ok + self.failed + self.rejected
    }

    /// The share of successes; `None` without a call.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of calls are far below 2^52"
    )]
    pub(crate) fn success_rate(self) -> Option<f64> {
        (self.total() > 0).then(|| self.ok as f64 / self.total() as f64)
    }
}

/// One phase of the script, by the calls that were due in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhaseSummary {
    pub(crate) calls: Counts,
    pub(crate) latency: Option<Latency>,
}

/// The figures of one client.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) calls: Counts,
    /// Failures and rejections by their kind.
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) rejections: BTreeMap<String, u64>,
    /// How long callers waited for a word, whatever it was.
    pub(crate) all: Option<Latency>,
    /// How long they waited for a success.
    pub(crate) ok: Option<Latency>,
    /// How long they waited to hear that it had come to nothing.
    pub(crate) not_ok: Option<Latency>,
    /// How long all callers together waited for calls that came to nothing.
    pub(crate) in_vain: Duration,
    pub(crate) phases: Vec<PhaseSummary>,
    pub(crate) notice: Option<Duration>,
    pub(crate) recovery: Option<Duration>,
}

impl Summary {
    fn of(mut samples: Vec<Sample>, script: Option<Script>) -> Self {
        samples.sort_by_key(|sample| sample.at);
        let mut failures = BTreeMap::new();
        let mut rejections = BTreeMap::new();
        for sample in &samples {
            match sample.outcome {
                Outcome::Ok => {}
                Outcome::Failed(how) => *failures.entry(how.name().into_owned()).or_default() += 1,
                Outcome::Rejected(pattern, reason) => {
                    let name = format!("{}.{}", pattern.as_str(), reason.as_str());
                    *rejections.entry(name).or_default() += 1;
                }
            }
        }
        Self {
            calls: Counts::of(samples.iter()),
            failures,
            rejections,
            all: Latency::of(samples.iter()),
            ok: Latency::of(samples.iter().filter(|sample| sample.is_ok())),
            not_ok: Latency::of(samples.iter().filter(|sample| !sample.is_ok())),
            in_vain: samples
                .iter()
                .filter(|sample| !sample.is_ok())
                .map(|sample| sample.latency)
                .sum(),
            phases: script.map_or_else(Vec::new, |script| by_phase(&samples, script)),
            notice: script.and_then(|script| notice(&samples, script.start(Phase::Hanging))),
            recovery: script.and_then(|script| recovery(&samples, script.start(Phase::Back))),
        }
    }
}

fn by_phase(samples: &[Sample], script: Script) -> Vec<PhaseSummary> {
    let summary = |phase| {
        let due = || {
            samples
                .iter()
                .filter(move |sample| script.at(sample.at) == phase)
        };
        PhaseSummary {
            calls: Counts::of(due()),
            latency: Latency::of(due()),
        }
    };
    Phase::ALL.into_iter().map(summary).collect()
}

/// From the start of the outage (the upstream hangs) to the first call that the breaker rejects: from then on the
/// client spares its callers the wait and the upstream the load. `None` if that never happens.
fn notice(samples: &[Sample], outage: Duration) -> Option<Duration> {
    samples
        .iter()
        .filter(|sample| {
            matches!(
                sample.outcome,
                Outcome::Rejected(Pattern::CircuitBreaker, _)
            )
        })
        .map(Sample::ended)
        .filter(|&ended| ended >= outage)
        .min()
        .map(|first| first - outage)
}

/// How many calls in a row are looked at to call a success sustained, and how many of them may fail.
const SUSTAINED: (usize, usize) = (20, 1);

/// From the return of the upstream to the end of the first success that lasts: of the [`SUSTAINED`] calls due from
/// there on, that one included, at most one fails or is rejected. `None` if there is no such success.
fn recovery(samples: &[Sample], back: Duration) -> Option<Duration> {
    let (run, allowed) = SUSTAINED;
    let since = samples.partition_point(|sample| sample.at < back);
    samples[since..]
        .windows(run)
        .find(|window| {
            window[0].is_ok() && window.iter().filter(|sample| !sample.is_ok()).count() <= allowed
        })
        .map(|window| window[0].ended() - back)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const OPEN: Outcome = Outcome::Rejected(Pattern::CircuitBreaker, Reason::Open);
    const FULL: Outcome = Outcome::Rejected(Pattern::Bulkhead, Reason::Full);
    const LATE: Outcome = Outcome::Failed(Failure::Timeout);

    const fn sample(at: u64, latency: u64, outcome: Outcome) -> Sample {
        Sample {
            at: ms(at),
            latency: ms(latency),
            outcome,
        }
    }

    #[test]
    fn rejections_are_counted_apart_from_failures() {
        let samples = vec![
            sample(0, 10, Outcome::Ok),
            sample(1, 2000, LATE),
            sample(2, 0, OPEN),
            sample(3, 0, FULL),
        ];
        let summary = Summary::of(samples, None);
        assert_eq!(
            summary.calls,
            Counts {
                ok: 1,
                failed: 1,
                rejected: 2
            }
        );
        assert_eq!(summary.calls.success_rate(), Some(0.25));
        assert_eq!(summary.failures, BTreeMap::from([("timeout".into(), 1)]));
        let rejections = [
            ("bulkhead.full".into(), 1),
            ("circuit_breaker.open".into(), 1),
        ];
        assert_eq!(summary.rejections, BTreeMap::from(rejections));
    }

    #[test]
    fn a_call_given_up_at_its_deadline_is_a_failure_and_no_rejection() {
        let late = Rejected::new(Pattern::Deadline, Reason::TimedOut, "api");
        assert_eq!(Outcome::from(&late), LATE);
        let open = Rejected::new(Pattern::CircuitBreaker, Reason::Open, "api");
        assert_eq!(Outcome::from(&open), OPEN);
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let samples: Vec<_> = (1..=1000).map(|n| sample(n, n, Outcome::Ok)).collect();
        let latency = Latency::of(samples.iter()).unwrap();
        let close = |is: Duration, should: u64| is.abs_diff(ms(should)) <= ms(should) / 500;
        assert!(close(latency.p50, 500), "{latency:?}");
        assert!(close(latency.p99, 990), "{latency:?}");
        assert!(close(latency.max, 1000), "{latency:?}");
        assert_eq!(Latency::of([].iter()), None);
    }

    #[test]
    fn successes_and_the_rest_have_latencies_of_their_own() {
        let samples = vec![sample(0, 10, Outcome::Ok), sample(1, 2000, LATE)];
        let summary = Summary::of(samples, None);
        assert!(summary.ok.unwrap().max < ms(11));
        assert!(summary.not_ok.unwrap().p50 > ms(1990));
        assert!(summary.all.unwrap().max > ms(1990));
        assert_eq!(summary.in_vain, ms(2000));
    }

    #[test]
    fn a_call_belongs_to_the_phase_in_which_it_was_due() {
        let script = Script::lasting(Duration::from_secs(38));
        let samples = vec![sample(3999, 2000, LATE), sample(4000, 10, Outcome::Ok)];
        let phases = by_phase(&samples, script);
        assert_eq!(
            phases[0].calls,
            Counts {
                failed: 1,
                ..Counts::default()
            }
        );
        assert_eq!(
            phases[1].calls,
            Counts {
                ok: 1,
                ..Counts::default()
            }
        );
        assert_eq!(phases[2].calls.success_rate(), None);
    }

    #[test]
    fn noticing_is_the_first_rejection_by_the_breaker_after_the_outage_began() {
        let samples = [
            sample(900, 0, OPEN),
            sample(1010, 500, LATE),
            sample(1100, 0, FULL),
            sample(1600, 1, OPEN),
            sample(1500, 2, OPEN),
        ];
        assert_eq!(notice(&samples, ms(1000)), Some(ms(502)));
        assert_eq!(notice(&samples[..3], ms(1000)), None);
    }

    #[test]
    fn recovery_is_a_success_that_lasts_and_not_the_first_lucky_one() {
        let mut samples: Vec<_> = (0..50).map(|n| sample(n * 10, 5, Outcome::Ok)).collect();
        assert_eq!(recovery(&samples, ms(100)), Some(ms(5)));
        // One more failure, or one success with failures behind it, is not enough to move it the wrong way.
        for sample in &mut samples[11..20] {
            sample.outcome = OPEN;
        }
        assert_eq!(recovery(&samples, ms(100)), Some(ms(105)));
        samples[25].outcome = LATE;
        assert_eq!(recovery(&samples, ms(100)), Some(ms(105)));
        for sample in &mut samples {
            sample.outcome = LATE;
        }
        assert_eq!(recovery(&samples, ms(100)), None);
    }

    #[test]
    fn too_few_calls_are_no_proof_of_recovery() {
        let samples: Vec<_> = (0..19).map(|n| sample(n * 10, 5, Outcome::Ok)).collect();
        assert_eq!(recovery(&samples, ms(0)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_cannot_keep_up_is_found_out() {
        let recorder = Recorder::start(Instant::now(), None);
        assert_eq!(recorder.lateness(), Duration::ZERO);
        for call in 0..200 {
            tokio::time::advance(ms(10)).await;
            // The first three are late.
            let late = if call < 3 { ms(10) } else { ms(0) };
            drop(recorder.begin(recorder.epoch().elapsed() - late));
        }
        assert_eq!(recorder.lateness(), ms(10));
        drop(recorder.begin(recorder.epoch().elapsed()));
        assert_eq!(recorder.live().in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_live_success_rate_looks_back_one_second() {
        let recorder = Recorder::start(Instant::now(), None);
        recorder.end(ms(0), ms(100), LATE);
        tokio::time::advance(ms(2000)).await;
        assert_eq!(recorder.live().recent, None);
        recorder.end(ms(1500), ms(1600), Outcome::Ok);
        recorder.end(ms(1500), ms(1600), OPEN);
        let live = recorder.live();
        assert_eq!(live.recent, Some(0.5));
        assert_eq!((live.ok, live.failed, live.rejected), (1, 1, 1));
    }
}
