//! What a process keeps of a store of cached values, while others change it: nothing stays stale.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::cache::{
    CacheStore,
    record::{Fill, Token},
    store::Subject,
};
use resilience_redis::{Redis, RedisCache};
use resilience_tests::{
    local_values::LocalValues,
    redis::{Flavour, RedisServer},
    redis_cluster::RedisCluster,
    redis_scene::SOON,
    until::eventually,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::timeout,
};

const NAME: &str = "tracked";
const HOUR: u64 = 3_600_000;
const CHANGES: u64 = 10;
const READERS: usize = 4;
const LANES: usize = 8;

/// Values and tags, for each of which one writer and four readers run at once. `RACES=5000` is the full count.
fn races() -> usize {
    let races = std::env::var("RACES").ok();
    races.map_or(200, |races| races.parse().expect("a number"))
}

/// A process that keeps values, as text, and generations of tags.
struct Process {
    store: RedisCache,
    local: Arc<LocalValues<String>>,
    _observing: Arc<dyn Any + Send + Sync>,
}

async fn store(url: &str) -> RedisCache {
    let redis = Redis::builder(url).budget(SOON / 6);
    let redis = redis.connect().expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis.cache()
}

impl Process {
    async fn told(url: &str) -> Self {
        let (store, local) = (store(url).await, Arc::<LocalValues<String>>::default());
        let observing = store.observe(Arc::downgrade(&local) as _);
        let is_told = async || local.state().is_told;
        eventually("changes are reported to the process", SOON, is_told).await;
        Self {
            store,
            local,
            _observing: observing.expect("it tells of changes"),
        }
    }

    fn kept(&self, subject: Subject<'_>) -> Option<String> {
        self.local.get(self.store.id(NAME, subject))
    }

    /// What is kept of `subject`, or what the store answers, which is then kept.
    async fn read(&self, subject: Subject<'_>) -> Option<String> {
        if let Some(kept) = self.kept(subject) {
            return Some(kept);
        }
        let id = self.store.id(NAME, subject);
        let ticket = self.local.ticket(id);
        let read = match subject {
            Subject::Key(key) => {
                let entry = self.store.get(NAME, &[key]).await.ok()?.remove(0);
                let body = entry.map(|it| it.body.expect("a value"));
                body.map_or(String::new(), |it| String::from_utf8_lossy(&it).into())
            }
            Subject::Tag(tag) => {
                let read = self.store.generations(NAME, &[tag], HOUR).await;
                format!("{:?}", read.ok()?[0].number)
            }
        };
        self.local.insert(id, ticket, read.clone());
        Some(read)
    }

    /// Whether what is kept is, within a moment, `right` or nothing, and then `right`.
    async fn comes_to(&self, subject: Subject<'_>, right: &str) -> bool {
        let comes = timeout(Duration::from_secs(5), async {
            while self.read(subject).await.as_deref() != Some(right) {
                yield_now().await;
            }
        });
        comes.await.is_ok()
    }
}

fn value(text: &str) -> Fill {
    Fill {
        body: Some(text.to_owned().into()),
        fresh_ms: HOUR,
        keep_ms: HOUR,
        load_ms: 1,
        tags: [].into(),
    }
}

/// Changes a subject from another process. Returns what is right in the end.
async fn change(other: &RedisCache, subject: Subject<'_>) -> String {
    match subject {
        Subject::Key(key) => {
            for number in 1..=CHANGES {
                let fill = value(&number.to_string());
                let put = other.put(NAME, key, Token::random(), &fill).await;
                put.expect("an answer");
            }
            CHANGES.to_string()
        }
        Subject::Tag(tag) => {
            for _ in 0..CHANGES {
                let done = other.invalidate_tag(NAME, tag, HOUR).await;
                done.expect("an answer");
            }
            let read = other.generations(NAME, &[tag], HOUR).await;
            format!("{:?}", read.expect("an answer")[0].number)
        }
    }
}

/// Whether a subject that is read while it changes is stale in the end.
async fn is_stale(process: &Process, other: &RedisCache, subject: Subject<'_>) -> bool {
    let over = AtomicBool::new(false);
    let changing = async {
        let right = change(other, subject).await;
        over.store(true, Relaxed);
        right
    };
    let reading = async || {
        while !over.load(Relaxed) {
            process.read(subject).await;
            yield_now().await;
        }
    };
    let (right, _) = tokio::join!(changing, join_all((0..READERS).map(|_| reading())));
    !process.comes_to(subject, &right).await
}

async fn stale(url: &str) -> usize {
    let process = Arc::new(Process::told(url).await);
    let other = store(url).await;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (process, other) = (Arc::clone(&process), other.clone());
        lanes.spawn(async move {
            let mut stale = 0;
            for number in (lane..races()).step_by(LANES) {
                let name = format!("race-{number}");
                for subject in [Subject::Key(&name), Subject::Tag(&name)] {
                    stale += usize::from(is_stale(&process, &other, subject).await);
                }
            }
            stale
        });
    }
    lanes.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_and_no_tag_stays_stale_that_was_read_while_another_process_changed_it() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &[]);
        assert_eq!(stale(&server.url()).await, 0, "{flavour:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_in_a_cluster() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start);
    let cluster = cluster.await.expect("starts");
    assert_eq!(stale(&cluster.url()).await, 0);
}

/// A tag that is read for the first time is written by that, and so is one that ends soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_reading_has_written_is_told_of_all_the_same() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &[]);
        let process = Process::told(&server.url()).await;
        let other = store(&server.url()).await;
        for (number, keep) in [(0, 1), (1, HOUR), (2, 2 * HOUR)] {
            // Prolonged by the later ones, as it is read.
            let read = process.store.generations(NAME, &["tag"], keep).await;
            read.expect("an answer");
            let at = format!("tag-{number}");
            for tag in ["tag", &at] {
                process.read(Subject::Tag(tag)).await;
                let right = change(&other, Subject::Tag(tag)).await;
                assert!(
                    process.comes_to(Subject::Tag(tag), &right).await,
                    "{flavour:?}: {tag}"
                );
            }
        }
    }
}
