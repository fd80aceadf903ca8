//! Hash map for keys that come from requests: reads take no lock, and hashes are seeded at random.

use std::hash::Hash;

use foldhash::fast::RandomState;
use papaya::{HashMap, ResizeMode};

/// Map from keys to what this process keeps of them.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// Creates an empty map.
///
/// A full table is replaced at once. Replaced in steps, as papaya does by default, it would stay half
/// replaced once no more keys come, and every look-up would search two tables.
pub(crate) fn map<K: Hash + Eq, V>() -> Map<K, V> {
    HashMap::builder()
        .hasher(RandomState::default())
        .resize_mode(ResizeMode::Blocking)
        .build()
}
