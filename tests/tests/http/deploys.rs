//! Servers that are replaced under load, in short. `make torture` is the long one.

use std::path::Path;

use resilience_tests::torture::deploys;

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_replaced_among_clients_that_hang_up_take_effect_once_for_each_key() {
    const KEYS: usize = 150;
    let came = deploys(Path::new(env!("CARGO_BIN_EXE_torture")), KEYS, true).await;
    println!("{came:?}");
    assert_eq!(
        (came.answered, came.twice, came.contradictory),
        (KEYS, 0, 0)
    );
    assert!(came.signals > 1 && came.hung_up > 0, "{came:?}");
}
