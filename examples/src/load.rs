//! The load: open loop, bounded in count and time, the same for all clients.
//!
//! Calls start when they are due, whether or not earlier ones have ended, and their latency is counted from the
//! moment they were due. A client that waits for an answer before it sends the next request would hide exactly the
//! stalls that the storm is about.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    clients::Caller,
    stats::{Failure, Outcome, Recorder},
};

/// More calls than this in flight are not started but recorded as [`Failure::NotSent`]: a bound for sockets and memory.
pub(crate) const MAX_IN_FLIGHT: usize = 1000;

/// When calls are due, for `rate` calls a second on average over `total`: a Poisson process, as independent users
/// make it. The same seed gives the same moments.
pub(crate) fn arrivals(seed: u64, rate: u32, total: Duration) -> Vec<Duration> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut due = Duration::ZERO;
    std::iter::from_fn(|| {
        let gap = -(1.0 - rng.f64()).ln() / f64::from(rate);
        due += Duration::from_secs_f64(gap);
        (due < total).then_some(due)
    })
    .collect()
}

/// `count` calls, evenly spaced.
pub(crate) fn metronome(count: u32, rate: u32) -> Vec<Duration> {
    (0..count)
        .map(|n| Duration::from_secs(n.into()) / rate)
        .collect()
}

/// Starts a call whenever one is due, and waits for all of them to end. When `stop` turns true, no more are started
/// and those in flight are dropped.
pub(crate) async fn drive<C: Caller>(
    caller: C,
    due: Vec<Duration>,
    recorder: Arc<Recorder>,
    mut stop: watch::Receiver<bool>,
) {
    let mut calls = JoinSet::new();
    let run = async {
        for (number, at) in due.into_iter().enumerate() {
            sleep_until(recorder.epoch() + at).await;
            // Reaps what has ended, so that the set holds only what is in flight.
            while calls.try_join_next().is_some() {}
            if calls.len() >= MAX_IN_FLIGHT {
                recorder.end(at, at, Outcome::Failed(Failure::NotSent));
                continue;
            }
            let (caller, recorder) = (caller.clone(), Arc::clone(&recorder));
            calls.spawn(async move {
                let flying = recorder.begin(at);
                let outcome = caller.call(number as u64).await;
                drop(flying);
                recorder.end(at, Instant::now() - recorder.epoch(), outcome);
            });
        }
        while calls.join_next().await.is_some() {}
    };
    tokio::select! {
        () = run => {}
        _ = stop.wait_for(|&stop| stop) => {}
    }
    calls.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    #[derive(Clone)]
    struct Takes(Duration);

    impl Caller for Takes {
        async fn call(&self, _: u64) -> Outcome {
            tokio::time::sleep(self.0).await;
            Outcome::Ok
        }
    }

    fn recorder() -> Arc<Recorder> {
        Arc::new(Recorder::start(
            Instant::now(),
            Some(Script::lasting(Duration::from_secs(19))),
        ))
    }

    fn never() -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        // Kept open for the length of the test.
        std::mem::forget(sender);
        receiver
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals_at_the_rate_asked_for() {
        let total = Duration::from_secs(20);
        let one = arrivals(1, 150, total);
        assert_eq!(one, arrivals(1, 150, total));
        assert_ne!(one, arrivals(2, 150, total));
        assert!(one.is_sorted() && one.iter().all(|&at| at < total));
        assert!(one.len().abs_diff(3000) < 250, "{} calls", one.len());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_start_when_due_though_earlier_ones_have_not_ended() {
        let recorder = recorder();
        let slow = Takes(Duration::from_secs(3));
        drive(slow, metronome(100, 100), Arc::clone(&recorder), never()).await;
        let samples = recorder.samples();
        assert_eq!(samples.len(), 100);
        assert!(
            samples
                .iter()
                .all(|sample| sample.latency < Duration::from_millis(3010))
        );
        assert_eq!(recorder.epoch().elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_calls_in_flight_are_bounded() {
        let recorder = recorder();
        let slow = Takes(Duration::from_secs(60));
        drive(slow, metronome(1500, 100), Arc::clone(&recorder), never()).await;
        let samples = recorder.samples();
        let unsent = Outcome::Failed(Failure::NotSent);
        let unsent = samples
            .iter()
            .filter(|sample| sample.outcome == unsent)
            .count();
        assert_eq!((samples.len(), unsent), (1500, 500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_drops_what_is_in_flight() {
        let recorder = recorder();
        let (stop, stopped) = watch::channel(false);
        let slow = Takes(Duration::from_secs(60));
        let run = tokio::spawn(drive(
            slow,
            metronome(10, 10),
            Arc::clone(&recorder),
            stopped,
        ));
        tokio::time::sleep(Duration::from_millis(550)).await;
        assert_eq!(recorder.live().in_flight, 6);
        stop.send_replace(true);
        run.await.unwrap();
        assert_eq!(recorder.live().in_flight, 0);
        assert_eq!(recorder.samples().len(), 0);
    }
}
