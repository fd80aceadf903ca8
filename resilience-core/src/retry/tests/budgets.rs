//! What the budget is for.

use super::*;

#[tokio::test(start_paused = true)]
async fn ten_thousand_failing_first_requests_cause_a_fifth_more_calls() {
    let retry = builder().budget(budget(0.2, 10)).build().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let mut service = retry.layer().replay(Always).layer(service_fn(move |()| {
        counter.fetch_add(1, Relaxed);
        std::future::ready(if attempt() == 1 {
            Err(Error::Service("down"))
        } else {
            Ok(())
        })
    }));
    let mut answered = 0;
    for _ in 0..10_000 {
        answered += u32::from(service.ready().await.unwrap().call(()).await.is_ok());
    }
    let calls = calls.load(Relaxed);
    assert!(calls <= 10_000 * 12 / 10 + 10, "{calls}");
    assert!(
        calls >= 10_000 * 12 / 10,
        "the budget is there to be used: {calls}"
    );
    assert_eq!(answered, calls - 10_000);
    assert_eq!(
        retry.snapshot().given_up.of(GaveUp::Budget),
        u64::from(10_000 - answered)
    );
}

#[tokio::test(start_paused = true)]
async fn a_blip_is_retried_away_entirely() {
    let retry = builder().budget(budget(0.2, 10)).build().unwrap();
    let count = AtomicU32::new(0);
    let mut service = retry.layer().replay(Always).layer(service_fn(|()| {
        let fails = attempt() == 1 && count.fetch_add(1, Relaxed).is_multiple_of(10);
        std::future::ready(if fails {
            Err(Error::Service("blip"))
        } else {
            Ok(())
        })
    }));
    for _ in 0..1000 {
        service.ready().await.unwrap().call(()).await.unwrap();
    }
    assert_eq!(retry.snapshot().retries, 100);
}
