//! Cached records in Redis: whatever lies under a key, or comes as the answer of a script, is read within its bytes, and never
//! as the value of another key.
#![no_main]
#![allow(dead_code, reason = "what writes records is not used here")]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use redis::Value;
use resilience_core::cache::record::Leased;
// For the module below.
use resilience_redis::CommandError;

use self::wire::{Content, content, generations, is_of, leased};

// Not part of the crate's interface.
#[path = "../../../resilience-redis/src/cache/wire.rs"]
mod wire;

fuzz_target!(|input: (u64, u64, Vec<i64>, &[u8], &[u8])| {
    let (hash, now, numbers, head, record) = input;
    // The time comes from a script, in microseconds.
    let now = now / 1000;
    let its_own = record
        .get(4..12)
        .and_then(|hash| hash.try_into().ok())
        .map(u64::from_le_bytes);
    for hash in its_own.into_iter().chain([hash]) {
        let answer = Value::BulkString(record.to_vec());
        let is_its = is_of(&answer, hash);
        if let Some(Content::Entry(entry)) = content(answer.clone(), hash, now) {
            assert!(is_its && its_own == Some(hash));
            assert!(entry.age_ms < entry.keep_ms);
            let tags: usize = entry.tags.iter().map(|tag| tag.tag.len() + 9).sum();
            let body = entry.body.as_ref().map_or(0, Bytes::len);
            assert!(64 + tags + body <= record.len());
        }
        let answer = Value::Array(vec![Value::BulkString(head.to_vec()), answer]);
        if let Some((
            Leased::Fresh(_)
            | Leased::Granted { stale: Some(_) }
            | Leased::Held { stale: Some(_), .. },
            _,
        )) = leased(answer, hash)
        {
            assert_eq!(its_own, Some(hash));
        }
    }
    let tags = numbers.len() / 2;
    let answer = Value::Array(numbers.into_iter().map(Value::Int).collect());
    if let Some(read) = generations(&answer, tags) {
        assert_eq!(read.len(), tags);
    }
});
