//! Rounds, medians, and two threads that start together.

// The benches measure real time, which is what std's clock is for.
#![allow(clippy::disallowed_types)]

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::subject::{Caller, Subject};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Interleaved rounds on one core. Those in which the thread had to wait for a processor are left out, if enough
    /// are left.
    pub rounds: usize,
    /// Calls of each subject in a round.
    pub calls: u64,
    /// Interleaved rounds on two cores.
    pub rounds_two: usize,
    /// Calls of each thread in a round on two cores.
    pub calls_two: u64,
    /// No round on two cores starts after this time: a lock that puts threads to sleep can make them very long on a
    /// busy machine.
    pub patience: Duration,
}

impl Effort {
    /// What figures are taken with: about two minutes for all subjects.
    pub const FULL: Self = Self {
        rounds: 401,
        calls: 4_000,
        rounds_two: 301,
        calls_two: 10_000,
        patience: Duration::from_secs(150),
    };
    /// Enough to see that everything runs.
    pub const QUICK: Self = Self {
        rounds: 1,
        calls: 100,
        rounds_two: 1,
        calls_two: 100,
        patience: Duration::from_secs(10),
    };
}

/// What one call of a subject takes, in nanoseconds, the bare service included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// The middle of all rounds.
    pub median: f64,
    /// Half of the rounds lie within this range around the median: how noisy the machine was.
    pub spread: f64,
    /// The share of rounds in which no other thread waited for the processor.
    pub undisturbed: f64,
}

/// Nanoseconds per call of every subject, one task on one thread.
#[must_use]
pub fn one_core(subjects: &[Subject], effort: Effort) -> Vec<Cost> {
    let mut callers: Vec<Caller> = subjects.iter().map(Subject::caller).collect();
    let mut samples = vec![Vec::with_capacity(effort.rounds); callers.len()];
    for round in 0..effort.rounds {
        for turn in 0..callers.len() {
            let which = (round + turn) % callers.len();
            let took = callers[which](effort.calls / 4, effort.calls);
            samples[which].push(Sample {
                value: took.time.as_secs_f64() * 1e9 / effort.calls as f64,
                disturbed: took.disturbed,
            });
        }
    }
    samples.into_iter().map(cost).collect()
}

/// What a second core brings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The throughput of two threads over that of one: 2 is perfect.
    pub ratio: f64,
    /// There were rounds enough in which both threads ran, at the same time, undisturbed. If not, the ratio is that
    /// of all rounds and says more about the machine.
    pub sound: bool,
}

/// What a second core brings to each subject that is shared between threads.
#[must_use]
pub fn two_cores(subjects: &[Subject], effort: Effort) -> Vec<Option<Scaling>> {
    let shared: Vec<&Subject> = subjects.iter().filter(|subject| subject.shared).collect();
    let threads = [Thread::start(0, &shared), Thread::start(1, &shared)];
    let mut ratios = vec![Vec::with_capacity(effort.rounds_two); shared.len()];
    let start = Instant::now();
    for round in 0..effort.rounds_two {
        if round > 0 && start.elapsed() > effort.patience {
            break;
        }
        for turn in 0..shared.len() {
            let which = (round + turn) % shared.len();
            // One right after the other, so that both meet the processor at the same pace.
            let job = Job::new(which, effort.calls_two, 1);
            let alone = run(&threads[round % 2..][..1], &job);
            let job = Job::new(which, effort.calls_two, 2);
            let together = run(&threads, &job);
            ratios[which].push(Sample {
                value: 2.0 * alone.value / together.value,
                disturbed: alone.disturbed || together.disturbed,
            });
        }
    }
    let mut scaling = ratios.into_iter().map(|ratios| {
        let calm = ratios.iter().filter(|ratio| !ratio.disturbed).count();
        Scaling {
            sound: calm >= ENOUGH,
            ratio: cost(ratios).median,
        }
    });
    subjects
        .iter()
        .map(|subject| subject.shared.then(|| scaling.next()).flatten())
        .collect()
}

/// Seconds from the first start to the last end.
fn run(threads: &[Thread], job: &Job) -> Sample {
    for thread in threads {
        thread.jobs.send(job.clone()).expect("the thread runs");
    }
    let done: Vec<Done> = threads
        .iter()
        .map(|thread| thread.done.recv().expect("the thread runs"))
        .collect();
    let starts = || done.iter().map(|done| done.start);
    let ends = || done.iter().map(|done| done.end);
    let span = |from: Option<Instant>, to: Option<Instant>| -> f64 {
        let (from, to) = from.zip(to).expect("one thread at least");
        to.saturating_duration_since(from).as_secs_f64()
    };
    let value = span(starts().min(), ends().max());
    // One after the other on the same core is not together.
    let together = span(starts().max(), ends().min()) > 0.9 * value;
    Sample {
        value,
        disturbed: !together || done.iter().any(|done| done.disturbed),
    }
}

/// A thread that lives through all rounds, with a caller of its own for each subject.
struct Thread {
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

struct Done {
    start: Instant,
    end: Instant,
    disturbed: bool,
}

#[derive(Clone)]
struct Job {
    which: usize,
    calls: u64,
    gate: Arc<Gate>,
}

impl Job {
    fn new(which: usize, calls: u64, threads: usize) -> Self {
        let gate = Gate {
            missing: AtomicUsize::new(threads),
        };
        Self {
            which,
            calls,
            gate: Arc::new(gate),
        }
    }
}

impl Thread {
    /// On a core of its own, where the system allows: on a busy machine two threads would often share one.
    fn start(number: usize, subjects: &[&Subject]) -> Self {
        let mut callers: Vec<Caller> = subjects.iter().map(|subject| subject.caller()).collect();
        let (jobs, todo) = channel::<Job>();
        let (report, done) = channel();
        thread::spawn(move || {
            let cores = core_affinity::get_core_ids().unwrap_or_default();
            if let Some(core) = cores.get(number) {
                core_affinity::set_for_current(*core);
            }
            for job in todo {
                let caller = &mut callers[job.which];
                caller(job.calls / 4, 0);
                job.gate.wait();
                let start = Instant::now();
                let took = caller(0, job.calls);
                let done = Done {
                    start,
                    end: start + took.time,
                    disturbed: took.disturbed,
                };
                if report.send(done).is_err() {
                    return;
                }
            }
        });
        Self { jobs, done }
    }
}

/// Opens when everybody is there. Spins: a thread that slept would start late.
struct Gate {
    missing: AtomicUsize,
}

impl Gate {
    fn wait(&self) {
        self.missing.fetch_sub(1, AcqRel);
        while self.missing.load(Acquire) > 0 {
            spin_loop();
        }
    }
}

/// One round of one subject.
#[derive(Clone, Copy)]
struct Sample {
    value: f64,
    disturbed: bool,
}

/// Fewer undisturbed rounds than this say less than all rounds together.
const ENOUGH: usize = 21;

fn cost(samples: Vec<Sample>) -> Cost {
    let rounds = samples.len();
    let (calm, all): (Vec<_>, Vec<_>) = samples
        .into_iter()
        .partition::<Vec<_>, _>(|sample| !sample.disturbed);
    let undisturbed = calm.len() as f64 / rounds as f64;
    let chosen = if calm.len() >= ENOUGH {
        calm
    } else {
        [calm, all].concat()
    };
    let mut values: Vec<f64> = chosen.iter().map(|sample| sample.value).collect();
    values.sort_by(f64::total_cmp);
    let at = |quarters: usize| values[(values.len() - 1) * quarters / 4];
    Cost {
        median: at(2),
        spread: (at(3) - at(1)) / 2.0,
        undisturbed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = f64>, disturbed: bool) -> Vec<Sample> {
        let sample = |value| Sample { value, disturbed };
        values.into_iter().map(sample).collect()
    }

    #[test]
    fn the_median_is_not_moved_by_one_slow_round() {
        assert_eq!(cost(samples([5.0, 4.0, 6.0, 5.0, 5.0], false)).median, 5.0);
        assert_eq!(cost(samples([5.0, 4.0, 6e3, 5.0, 5.0], false)).median, 5.0);
    }

    #[test]
    fn disturbed_rounds_do_not_count_where_there_are_others_enough() {
        let calm = samples((0..ENOUGH).map(|_| 5.0), false);
        let disturbed = samples((0..100).map(|_| 50.0), true);
        let enough = cost([calm.clone(), disturbed.clone()].concat());
        assert_eq!(enough.median, 5.0);
        let too_few = cost([calm[1..].to_vec(), disturbed].concat());
        assert_eq!(too_few.median, 50.0);
        assert!(too_few.undisturbed < 0.2);
    }

    #[test]
    fn every_subject_is_called_as_often_as_the_effort_says() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let subject = Subject::new(
            "counted",
            tower::service_fn(move |request| {
                counted.fetch_add(1, AcqRel);
                crate::subject::answer::<std::convert::Infallible>(request)
            }),
        )
        .on_two_cores();
        let subjects = [subject];
        let effort = Effort {
            rounds: 3,
            calls: 100,
            rounds_two: 2,
            calls_two: 40,
            patience: Duration::from_secs(60),
        };
        assert_eq!(one_core(&subjects, effort).len(), 1);
        assert_eq!(calls.swap(0, AcqRel), 3 * (25 + 100));
        assert!(two_cores(&subjects, effort)[0].is_some());
        // One thread alone, then two together.
        assert_eq!(calls.load(Acquire), 2 * 3 * (10 + 40));
    }
}
