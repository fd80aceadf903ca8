//! No answer is taken for another's, whatever happens to connections. `torture only cluster` is the long run.

use resilience_tests::{
    answers::{Told, in_a_cluster, under_sentinels, with_killed_connections},
    redis_cluster::RedisCluster,
};

fn nothing_is_wrong(told: Told) {
    println!("{told:?}");
    assert_eq!(told.wrong(), 0, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_is_told_the_answer_of_another_key() {
    let start = tokio::task::spawn_blocking(RedisCluster::start);
    let mut cluster = start.await.expect("a Cluster");
    let mut told;
    for subscriptions in [8, 64] {
        (cluster, told) = in_a_cluster(cluster, subscriptions, 2_000, 6).await;
        nothing_is_wrong(told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_is_told_the_answer_of_another_key_when_another_server_becomes_master() {
    nothing_is_wrong(under_sentinels(64, 2_000, 2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_is_told_the_answer_of_another_key_when_connections_are_killed() {
    nothing_is_wrong(with_killed_connections(64, 2_000, 6).await);
}
