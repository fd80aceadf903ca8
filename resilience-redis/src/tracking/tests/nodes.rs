//! In a Cluster.

use resilience_tests::{redis::RedisServer, redis_cluster::RedisCluster};
use tokio::task::spawn_blocking;

use super::{
    races::{races, stale_after_races, writer},
    *,
};

const KILLS: usize = 5;

async fn cluster() -> RedisCluster {
    spawn_blocking(RedisCluster::start).await.expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_stays_stale_in_a_cluster_while_connections_to_its_nodes_are_killed() {
    let cluster = Arc::new(cluster().await);
    let process = Arc::new(Process::told(&cluster.url()).await);
    let writer = writer(&process).await;
    assert_eq!(stale_after_races(&process, &writer, races()).await, 0);
    assert_eq!(process.local.state().lost, 0);
    let killing = tokio::spawn({
        let (cluster, process) = (Arc::clone(&cluster), Arc::clone(&process));
        async move {
            for _ in 0..KILLS {
                let node = cluster.node(fastrand::usize(..6));
                process.loses_a_connection(node).await;
            }
        }
    });
    let mut stale = 0;
    while !killing.is_finished() {
        stale += stale_after_races(&process, &writer, races() / 8).await;
    }
    killing.await.expect("no panic");
    assert_eq!(stale, 0);
    process.is_told().await;
}

/// Nothing is lost: the replica has told of changes all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_over_tells_of_changes_from_its_first_write_on() {
    let cluster = cluster().await;
    let process = Process::told(&cluster.url()).await;
    let at = key("one");
    let former = cluster.master_of(&at);
    assert_eq!(cluster.node(former).command(&format!("SET {at} 1")), "OK");
    process.keeps(&at, Some("1")).await;
    let of = at.clone();
    let cluster = spawn_blocking(move || {
        cluster.fail_over(&of);
        cluster
    });
    let cluster = cluster.await.expect("a replica takes over");
    let successor = cluster.node(cluster.master_of(&at));
    let set = format!("SET {at} 2");
    eventually("it takes writes", SOON, async || {
        successor.command(&set) == "OK"
    })
    .await;
    process.forgets("a change at the successor", &at).await;
    eventually("the new value is kept", SOON, async || {
        let _ = process.read(&at).await;
        process.kept(&at) == Some(Some("2".into()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_again_when_a_dead_replica_is_off_the_list_and_when_it_is_back() {
    let mut cluster = cluster().await;
    let process = Process::told(&cluster.url()).await;
    let at = key("one");
    let replica = (0..6)
        .find(|it| cluster.node(*it).command("ROLE").starts_with("slave"))
        .expect("a replica");
    process.keeps(&at, None).await;
    cluster.node_mut(replica).kill();
    process.forgets("a node is lost", &at).await;
    process.is_told().await;
    process.keeps(&at, None).await;
    let before = process.local.state().clone();
    assert!(before.lost >= 1, "{before:?}");
    cluster.node_mut(replica).restart();
    process.forgets("a node is new", &at).await;
    process.is_told().await;
    let after = process.local.state().clone();
    assert!(after.cleared > before.cleared, "{after:?}");
    process.keeps(&at, None).await;
    let master: &RedisServer = cluster.node(cluster.master_of(&at));
    assert_eq!(master.command(&format!("SET {at} 1")), "OK");
    process.forgets("a change", &at).await;
}
