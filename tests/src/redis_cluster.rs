//! A Redis Cluster for tests: masters and replicas, formed by `redis-cli --cluster create`.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use crate::redis::{RedisServer, find};

/// A running Cluster. All nodes end when it is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

/// A slot that is being moved.
#[derive(Debug)]
pub struct Moving {
    slot: String,
    from: usize,
    to: usize,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl RedisCluster {
    /// Starts three masters with a replica each. Takes some seconds. A node counts as failed after half a second of
    /// silence, and the loss of a shard leaves the others in use.
    #[must_use]
    pub fn start() -> Self {
        let args = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "500",
            "--cluster-require-full-coverage",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let cluster = Self {
            nodes: (0..6).map(|_| RedisServer::start_with(&args)).collect(),
        };
        let addresses = cluster.nodes.iter().map(RedisServer::addr);
        let create = ["--cluster", "create"].map(str::to_owned);
        let options = ["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned);
        cli(create.into_iter().chain(addresses).chain(options));
        cluster.is_whole();
        cluster.wait_until("every node lists all nodes", |cluster| {
            // A replica is listed once it is known to have received something.
            cluster.nodes.iter().all(|node| {
                let slots = node.try_command("CLUSTER SLOTS").unwrap_or_default();
                let hosts = slots.lines().filter(|line| *line == "127.0.0.1");
                hosts.count() == cluster.nodes.len()
            })
        });
        cluster
    }

    /// `redis-cluster://host:port,..`
    #[must_use]
    pub fn url(&self) -> String {
        let all: Vec<_> = self.nodes.iter().map(RedisServer::addr).collect();
        format!("redis-cluster://{}", all.join(","))
    }

    /// The number of the node that is the current master of the slot of `key`, according to a running node.
    ///
    /// # Panics
    ///
    /// When none is within a minute.
    #[must_use]
    pub fn master_of(&self, key: &str) -> usize {
        let slot = self.slot(key);
        let mut found = None;
        self.wait_until("the slot has a master", |cluster| {
            found = cluster.find_master_of(slot);
            found.is_some()
        });
        found.expect("just found")
    }

    /// The slot of `key`.
    #[must_use]
    pub fn slot(&self, key: &str) -> u16 {
        let node = self.nodes.iter().find(|node| node.process().is_some());
        let answer = node
            .expect("a node runs")
            .try_words(&["CLUSTER", "KEYSLOT", key])
            .expect("an answer");
        answer.parse().expect("a slot")
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    /// The node with this number.
    pub fn node_mut(&mut self, number: usize) -> &mut RedisServer {
        &mut self.nodes[number]
    }

    /// Moves the slot of `key`, with its keys, to another master, as an operator would. Returns the number of that master.
    ///
    /// # Panics
    ///
    /// When the nodes do not answer as expected.
    #[must_use]
    pub fn move_slot(&self, key: &str) -> usize {
        let moving = self.begin_move(key);
        self.end_move(&moving)
    }

    /// Begins to move the slot of `key` to another master: keys that are not there are asked for at the other one (`ASK`).
    ///
    /// # Panics
    ///
    /// When the nodes do not answer as expected.
    #[must_use]
    pub fn begin_move(&self, key: &str) -> Moving {
        let slot = self.slot(key).to_string();
        let from = self.master_of(key);
        let mut others = self.nodes.iter().enumerate();
        let other = others.find(|(number, node)| {
            let replication = || node.try_command("INFO replication");
            *number != from && replication().is_ok_and(|answer| answer.contains("role:master"))
        });
        let (to, _) = other.expect("another master");
        let id = |number: usize| self.nodes[number].command("CLUSTER MYID");
        self.tell(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        self.tell(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        Moving { slot, from, to }
    }

    /// Moves the keys of a slot, and ends the move. Returns the number of the master that has it now.
    ///
    /// # Panics
    ///
    /// When the nodes do not answer as expected.
    #[must_use]
    pub fn end_move(&self, moving: &Moving) -> usize {
        let Moving { slot, from, to } = moving;
        let port = self.nodes[*to].port().to_string();
        loop {
            let keys = self.tell(*from, &["CLUSTER", "GETKEYSINSLOT", slot, "100"]);
            let keys: Vec<&str> = keys.lines().collect();
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            command.extend(keys);
            self.tell(*from, &command);
        }
        let id = self.nodes[*to].command("CLUSTER MYID");
        for number in [*to, *from] {
            self.tell(number, &["CLUSTER", "SETSLOT", slot, "NODE", &id]);
        }
        *to
    }

    fn tell(&self, number: usize, words: &[&str]) -> String {
        let answer = self.nodes[number].try_words(words).expect("an answer");
        assert!(!answer.starts_with('-'), "{words:?}: {answer}");
        answer
    }

    /// Makes a replica the master of the slot of `key`, as an operator would, and waits until it is.
    ///
    /// # Panics
    ///
    /// When no replica is for a minute.
    pub fn fail_over(&self, key: &str) {
        let master = self.master_of(key);
        let id = self.nodes[master].command("CLUSTER MYID");
        let slot = self.slot(key);
        self.wait_until("a replica takes over", |cluster| {
            for node in &cluster.nodes {
                // `id host:port@bus flags master ..`; the node's own line has the flag `myself`.
                let lines = node.try_command("CLUSTER NODES").unwrap_or_default();
                let own = lines.lines().find(|line| line.contains("myself"));
                if own.is_some_and(|line| line.split_whitespace().nth(3) == Some(&id)) {
                    let _ = node.try_command("CLUSTER FAILOVER");
                }
            }
            std::thread::sleep(Duration::from_millis(200));
            cluster
                .find_master_of(slot)
                .is_some_and(|found| found != master)
        });
    }

    /// Waits until another node than `former` is master of the slot of `key`.
    ///
    /// # Panics
    ///
    /// When none is within a minute.
    pub fn has_another_master(&self, key: &str, former: usize) {
        let slot = self.slot(key);
        let mut patience = Instant::now() + Duration::from_secs(5);
        self.wait_until("another master", |cluster| {
            let found = cluster.find_master_of(slot);
            if found.is_none_or(|found| found == former) && Instant::now() > patience {
                cluster.help_owner_of(slot);
                patience = Instant::now() + Duration::from_secs(1);
            }
            found.is_some_and(|found| found != former)
        });
    }

    /// A replica may have been elected under an epoch that the dead master, whose slots had just moved, had given itself:
    /// the other nodes do not believe it, and an operator has to help.
    fn help_owner_of(&self, slot: u16) {
        for node in &self.nodes {
            let lines = node.try_command("CLUSTER NODES").unwrap_or_default();
            let own = lines.lines().find(|line| line.contains("myself,master"));
            let slots = own.map(|line| line.split(' ').skip(8));
            if slots.is_some_and(|mut slots| slots.any(|range| holds(range, slot))) {
                let _ = node.try_command("CLUSTER BUMPEPOCH");
            }
        }
    }

    /// Waits until a replica follows the node, and all nodes agree on its epoch and slots: only then can it take over. (An epoch that a
    /// master gave itself for a slot that has moved is above that of a replica which has not heard of it.)
    ///
    /// # Panics
    ///
    /// When none does for a minute.
    pub fn is_followed(&self, number: usize) {
        self.wait_until("a replica follows", |cluster| {
            let answer = cluster.nodes[number].try_command("INFO replication");
            let is_followed = answer.is_ok_and(|answer| answer.contains("state=online"));
            let id = cluster.nodes[number].try_command("CLUSTER MYID");
            let id = id.unwrap_or_default();
            // `id host:port@bus flags master ping pong epoch link slots..`
            let views = cluster.nodes.iter().map(|node| {
                let lines = node.try_command("CLUSTER NODES").ok()?;
                let line = lines.lines().find(|line| line.starts_with(&id))?;
                let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
                let slots = words[8..].iter().filter(|word| !word.starts_with('['));
                Some((words[6].clone(), slots.cloned().collect::<Vec<_>>()))
            });
            let views: Vec<_> = views.collect();
            is_followed && views[0].is_some() && views.iter().all(|view| *view == views[0])
        });
    }

    /// Waits until the node is a replica, and linked.
    ///
    /// # Panics
    ///
    /// When it is not for a minute.
    pub fn follows(&self, number: usize) {
        self.wait_until("the node follows a master", |cluster| {
            let answer = cluster.nodes[number].try_command("INFO replication");
            answer.is_ok_and(|answer| answer.contains("master_link_status:up"))
        });
    }

    /// Waits until every node agrees and every replica is linked.
    ///
    /// # Panics
    ///
    /// When that takes longer than a minute.
    pub fn is_whole(&self) {
        self.wait_until("every node agrees and every replica is linked", |cluster| {
            cluster.nodes.iter().all(|node| {
                let is = |command: &str, words: &str| {
                    node.try_command(command)
                        .is_ok_and(|answer| answer.contains(words))
                };
                let linked = is("INFO replication", "role:master")
                    || is("INFO replication", "master_link_status:up");
                is("CLUSTER INFO", "cluster_state:ok") && linked
            })
        });
    }

    fn find_master_of(&self, slot: u16) -> Option<usize> {
        let running = self.nodes.iter().find(|node| node.process().is_some())?;
        // `id host:port@bus flags master ping pong epoch link slots..`
        let lines = running.try_command("CLUSTER NODES").ok()?;
        let line = lines.lines().find(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_well = words[2].contains("master") && !words[2].contains("fail");
            is_well && words[8..].iter().any(|range| holds(range, slot))
        })?;
        let (address, _) = line.split_whitespace().nth(1)?.split_once('@')?;
        self.nodes.iter().position(|node| node.addr() == address)
    }

    fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {what}\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the nodes say of each other.
    fn said(&self) -> String {
        let said = |node: &RedisServer| {
            let lines = node.try_command("CLUSTER NODES");
            format!("{}:\n{}\n", node.addr(), lines.unwrap_or_default())
        };
        self.nodes.iter().map(said).collect()
    }
}

fn holds(range: &str, slot: u16) -> bool {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first..=last).contains(&slot),
        // `[slot->-node]`: being moved.
        _ => false,
    }
}

fn cli(args: impl IntoIterator<Item = String>) {
    let program = find("redis-cli").expect("redis-cli is needed: `tests/setup.sh` installs it");
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("redis-cli runs");
    assert!(
        output.status.success(),
        "redis-cli: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
