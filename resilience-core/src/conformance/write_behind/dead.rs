//! Dead letters.

use super::*;
use crate::write_behind::record::DeadAction;

/// Writes a key and sets it aside; its version.
async fn set_aside(it: &dyn WriteBehindStore, shard: Shard<'_>, key: &str) -> u64 {
    let version = put(it, shard, key, b"1").await;
    let (fence, _) = taken(it, shard).await;
    let dead = EntryResult::Dead {
        reason: format!("{key}: refused"),
    };
    assert!(settle(it, shard, fence, &[(key, version, dead)]).await);
    version
}

pub(super) async fn a_dead_letter_is_kept_until_it_is_redriven_discarded_or_written(
    it: &dyn WriteBehindStore,
) {
    let shard = shard("dead");
    let keys = ["a".into(), "unknown".into()];
    let act = async |action| {
        it.act_on_dead(shard, &keys, action)
            .await
            .expect("an answer")
    };
    let version = set_aside(it, shard, "a").await;
    assert_eq!(
        (value(it, shard, "a").await, entries(it, shard).await),
        (None, 0)
    );
    let letters = it.dead(shard, None, 10).await.expect("an answer");
    assert_eq!((&*letters[0].key, letters[0].version), ("a", version));
    assert_eq!(
        (letters[0].attempts, &*letters[0].reason),
        (1, "a: refused")
    );
    assert_eq!(letters[0].value.as_deref(), Some(&b"1"[..]));
    assert!(letters[0].age_ms < HOUR);

    assert_eq!(act(DeadAction::Redrive).await, 1);
    let (fence, batch) = taken(it, shard).await;
    assert_eq!((batch[0].version, batch[0].attempts), (version, 0));
    let dead = EntryResult::Dead {
        reason: String::new(),
    };
    assert!(settle(it, shard, fence, &[("a", version, dead)]).await);
    assert_eq!(act(DeadAction::Discard).await, 1);
    assert_eq!(act(DeadAction::Discard).await, 0);
    assert_eq!(it.state(shard).await.expect("an answer").dead, 0);

    let version = set_aside(it, shard, "a").await;
    assert!(put(it, shard, "a", b"2").await > version);
    assert!(
        it.dead(shard, None, 10)
            .await
            .expect("an answer")
            .is_empty()
    );
    assert_eq!(act(DeadAction::Redrive).await, 0);
    assert_eq!(value(it, shard, "a").await.as_deref(), Some(&b"2"[..]));
}

pub(super) async fn dead_letters_are_listed_in_order(it: &dyn WriteBehindStore) {
    let shard = shard("letters");
    assert!(
        it.dead(shard, None, 10)
            .await
            .expect("an answer")
            .is_empty()
    );
    for key in ["c", "a", "d", "b"] {
        set_aside(it, shard, key).await;
    }
    let mut all = Vec::new();
    let mut after: Option<Arc<str>> = None;
    loop {
        let page = it
            .dead(shard, after.as_deref(), 3)
            .await
            .expect("an answer");
        let Some(last) = page.last() else {
            break;
        };
        after = Some(Arc::clone(&last.key));
        all.extend(page.iter().map(|it| it.key.to_string()));
    }
    assert_eq!(all, ["a", "b", "c", "d"]);
}
