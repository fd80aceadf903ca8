//! The orderly end.

use super::{agreement::Hung, *};

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_the_probes_back_reports_the_last_calls_and_leaves() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 2).await;
    pass(ms(5_000)).await;
    let service = tower::ServiceBuilder::new()
        .layer(fleet[0].layer())
        .service_fn(|()| std::future::pending::<Result<(), Error<()>>>());
    let hanging = tokio::spawn(tower::ServiceExt::oneshot(service, ()));
    pass(ms(100)).await;
    let view = store.view("payments").await.unwrap();
    assert_eq!((view.leased, view.live), (1, 2));
    fleet[0].shutdown(ms(1_000)).await.unwrap();
    let view = store.view("payments").await.unwrap();
    assert_eq!((view.leased, view.live), (0, 1));
    hanging.abort();
    assert_eq!(fleet[0].shutdown(ms(0)).await, Ok(()), "again is no error");
    assert!(
        fleet[0].snapshot().counts.calls == 0,
        "it can still be asked"
    );

    let calling = builder(store.clone()).build().unwrap();
    fleet[1]
        .fleet()
        .unwrap()
        .reset("ops", "over")
        .await
        .unwrap();
    pass(ms(100)).await;
    succeed(&calling, 7);
    calling.shutdown(ms(1_000)).await.unwrap();
    assert_eq!(store.view("payments").await.unwrap().window.success, 7);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_dropped_leaves() {
    let store = InProcessBreakers::new();
    let mut fleet = fleet(&store, 3);
    pass(ms(50)).await;
    assert_eq!(store.view("payments").await.unwrap().live, 3);
    fleet.truncate(1);
    pass(ms(50)).await;
    assert_eq!(store.view("payments").await.unwrap().live, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_store_that_hangs() {
    let breaker = builder(Hung(InProcessBreakers::new())).build().unwrap();
    pass(ms(2_000)).await;
    let start = tokio::time::Instant::now();
    assert_eq!(breaker.shutdown(ms(5_000)).await, Ok(()));
    assert!(start.elapsed() <= ms(600), "{:?}", start.elapsed());
    assert_eq!(call(&breaker, Verdict::Success), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_family_ends_as_a_whole() {
    let store = InProcessBreakers::new();
    let family = builder(store.clone())
        .keyed::<String>(crate::keyed::Keyed::new())
        .unwrap();
    let names = ["a", "b", "c"];
    for name in names {
        succeed(&family.get(name), 1);
    }
    pass(ms(50)).await;
    for name in names {
        let view = store.view(&format!("payments/{name}")).await.unwrap();
        assert_eq!(view.live, 1);
    }
    family.shutdown(ms(1_000)).await.unwrap();
    for name in names {
        let view = store.view(&format!("payments/{name}")).await.unwrap();
        assert_eq!(view.live, 0);
    }
}
