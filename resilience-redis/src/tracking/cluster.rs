//! Tracking in a Cluster: one connection to each node, beside those of the client, which reconnects to single nodes without a
//! word.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    coverage::{Coverage, Member},
    session::{Kind, TrackingSession},
};
use crate::{connection::Connection, url::Address};

/// Interval at which the list of nodes is read.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Number of failed attempts to read the list, one after the other, after which it is not relied on.
pub(super) const FAILURES: u32 = 3;

/// The nodes of a Cluster that are listened to.
struct Nodes {
    cluster: Arc<Connection>,
    kind: Arc<Kind>,
    known: BTreeMap<Address, (Member, Connection)>,
    /// In use while the list of nodes is as new as it should be.
    list: Member,
    looks: u64,
    failures: u32,
}

/// Keeps a connection to every node, replicas included: one of them may be a master at any time, and then reports
/// changes from its first write on.
pub(super) async fn follow(cluster: Arc<Connection>, kind: Arc<Kind>) {
    let mut nodes = Nodes {
        list: kind.observers.update(Coverage::add),
        cluster,
        kind,
        known: BTreeMap::new(),
        looks: 0,
        failures: 0,
    };
    let mut due = interval(LOOK);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        nodes.look().await;
    }
}

impl Nodes {
    async fn look(&mut self) {
        self.looks += 1;
        let (list, look) = (self.list, self.looks);
        match self.cluster.nodes().await {
            // A node that has been reset knows of none.
            Ok(listed) if !listed.is_empty() => {
                self.failures = 0;
                self.follow_list(&listed.into_iter().collect());
                let observers = &self.kind.observers;
                observers.update(|coverage| coverage.began(list, look));
            }
            _ => {
                self.failures += 1;
                if self.failures >= FAILURES {
                    let observers = &self.kind.observers;
                    observers.update(|coverage| coverage.ended(list, look));
                }
            }
        }
    }

    /// Connects to nodes that are new. One that is not listed is left once its connection is lost: another node may not know
    /// of it yet, or be wrong, and a change that is reported twice is harmless.
    fn follow_list(&mut self, listed: &BTreeSet<Address>) {
        let observers = Arc::clone(&self.kind.observers);
        let new: Vec<Address> = listed
            .iter()
            .filter(|it| !self.known.contains_key(*it))
            .cloned()
            .collect();
        let is_first = self.known.is_empty();
        for node in &new {
            let member = observers.update(Coverage::add);
            let session = Arc::new(TrackingSession::new(&self.kind, member));
            if let Some(connection) = self.cluster.to_node(node.clone(), session) {
                self.known.insert(node.clone(), (member, connection));
            }
        }
        if !new.is_empty() && !is_first {
            // It may have been read from before it was known.
            observers.cleared();
        }
        self.known.retain(|node, (member, _)| {
            observers.update(|coverage| {
                let stays = listed.contains(node) || coverage.is_live(*member);
                if !stays {
                    coverage.remove(*member);
                }
                stays
            })
        });
    }
}
