//! A new configuration is rolled out: for a while instances differ in it.

use super::*;

/// Too few calls for each, so that only the fleet's count opens them.
#[tokio::test(start_paused = true)]
async fn instances_that_differ_in_their_window_open_together() {
    let store = InProcessBreakers::new();
    let of = |seconds: u64| {
        let window = Window::time(Duration::from_secs(seconds));
        builder(store.clone()).window(window).build().unwrap()
    };
    let fleet = [of(10), of(10), of(20), of(13)];
    pass(ms(50)).await;
    for _ in 0..3 {
        for breaker in &fleet {
            fail(breaker, 1);
        }
        pass(ms(300)).await;
    }
    assert_eq!(states(&fleet), [State::Open; 4]);
}

#[test]
fn counts_do_not_age_when_the_buckets_change_back_and_forth() {
    let mut record = BreakerRecord::default();
    let report = |sequence, bucket_ms, success| Report {
        instance: "a".into(),
        voter: "a".into(),
        sequence,
        epoch: 0,
        counts: Counts {
            success,
            ..Counts::default()
        },
        failing: false,
        bucket_ms,
        live_ms: 60_000,
        state: None,
    };
    let start = 1_000_999;
    record.report(&report(1, 1_000, 7), start);
    for sequence in 2..200 {
        let bucket_ms = [1_000, 700][sequence as usize % 2];
        record.report(&report(sequence, bucket_ms, 0), start + sequence);
    }
    assert_eq!(record.view(start + 5_000).window.success, 7);
    record.report(&report(200, 1_000, 0), start + 11_000);
    assert_eq!(record.view(start + 11_000).window.success, 0);
}
