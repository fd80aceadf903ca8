//! The list of names.

use tokio::{runtime::Handle, time::sleep};

use super::{shaky::Shaky, *};

const HOUR: Duration = Duration::from_secs(3600);

fn built(store: &Shaky) -> Idempotency {
    let builder = Idempotency::builder("test").store(store.clone());
    builder.build().unwrap()
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn a_handle_is_announced_at_once_and_once_an_hour_and_not_by_calls() {
    let store = Shaky::default();
    store.lists();
    let handle = built(&store);
    sleep(SECOND).await;
    assert_eq!(store.announced(), 1);
    for key in 0..50_u32 {
        let work = move |_| async move { Ok::<_, io::Error>(key) };
        handle.run(key.to_string(), work).await.unwrap();
    }
    assert_eq!(store.announced(), 1);
    sleep(HOUR * 10).await;
    assert!(
        (9..=14).contains(&store.announced()),
        "{}",
        store.announced()
    );
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_fails_is_repeated_within_two_minutes() {
    let store = Shaky::default();
    store.lists();
    store.down(true);
    let _handle = built(&store);
    sleep(SECOND).await;
    assert_eq!((store.asked(), store.announced()), (1, 0));
    store.down(false);
    sleep(SECOND * 120).await;
    assert_eq!((store.asked(), store.announced()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_task_that_announces_ends_with_the_handle_and_with_the_store() {
    let store = Shaky::default();
    store.lists();
    let handle = built(&store);
    let clone = handle.clone();
    drop(handle);
    sleep(SECOND).await;
    assert_eq!(tasks(), 1, "a clone is left");
    drop(clone);
    sleep(SECOND).await;
    assert_eq!(tasks(), 0);
    let _handle = built(&store);
    store.handle.shutdown(SECOND).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_list_costs_no_task() {
    let store = Shaky::default();
    let _handle = built(&store);
    assert_eq!((tasks(), store.asked()), (0, 0));
}

#[test]
fn a_handle_that_is_built_outside_of_a_runtime_is_not_announced() {
    let store = Shaky::default();
    store.lists();
    drop(built(&store));
    assert_eq!(store.asked(), 0);
}
