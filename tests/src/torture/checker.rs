//! What was told, and what is there.

use std::collections::{BTreeSet, HashMap};

use sqlx::PgPool;

use super::worker::name;

/// The end of the day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Calls that were told an outcome; a call that was repeated after its process had died counts once.
    pub told: usize,
    /// Keys with an outcome that a caller has received.
    pub keys: usize,
    /// Effects in the database.
    pub effects: usize,
    /// Effects beyond the first of a key.
    pub double: usize,
    /// Keys with an outcome that a caller has received and that is missing.
    pub lost: usize,
    /// Keys of which different outcomes were told.
    pub contradictory: usize,
    /// Keys that were still not done when all was quiet again.
    pub stuck: usize,
}

/// By key: the fences of the effects that were told.
pub(super) type Tellings = HashMap<usize, BTreeSet<i64>>;

pub(super) async fn balance(
    pool: &PgPool,
    told: usize,
    tellings: &Tellings,
    stuck: usize,
) -> Findings {
    let rows = sqlx::query_as("SELECT key, fence FROM effects")
        .fetch_all(pool)
        .await;
    let rows: Vec<(String, i64)> = rows.expect("the effects");
    let mut there: HashMap<&str, Vec<i64>> = HashMap::new();
    for (key, fence) in &rows {
        there.entry(key).or_default().push(*fence);
    }
    let is_there = |key: usize, fence: i64| {
        there
            .get(name(key).as_str())
            .is_some_and(|fences| fences.contains(&fence))
    };
    let lost = tellings
        .iter()
        .filter(|(key, fences)| !fences.iter().all(|fence| is_there(**key, *fence)));
    Findings {
        told,
        keys: tellings.len(),
        effects: rows.len(),
        double: rows.len() - there.len(),
        lost: lost.count(),
        contradictory: tellings.values().filter(|fences| fences.len() > 1).count(),
        stuck,
    }
}
