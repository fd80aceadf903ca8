use proptest::{collection::vec, option, prelude::*, sample::Index, test_runner::TestCaseError};

use super::*;

const HASH: u64 = 0x0102_0304_0506_0708;
const NOW: u64 = 1_700_000_000_000;

fn fill() -> Fill {
    let tag = |tag: &str, generation| TagGeneration {
        tag: tag.into(),
        generation,
    };
    Fill {
        body: Some(Bytes::from_static(b"body")),
        fresh_ms: 100,
        keep_ms: 200,
        load_ms: 7,
        tags: [tag("", 1), tag("fruit", u64::MAX)].into(),
    }
}

fn stored_at(ms: u64) -> Vec<u8> {
    let mut record = value(HASH, Token::new(9).unwrap(), &fill());
    record[20..26].copy_from_slice(&six(ms));
    record
}

fn age(stored: u64, now: u64) -> Option<u64> {
    match content(Value::BulkString(stored_at(stored)), HASH, now) {
        Some(Content::Entry(entry)) => Some(entry.age_ms),
        Some(Content::Nothing) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_is_read_as_it_was_written() {
    let answer = Value::BulkString(stored_at(NOW));
    assert!(is_of(&answer, HASH) && !is_of(&answer, HASH + 1));
    let Some(Content::Entry(entry)) = content(answer, HASH, NOW + 5) else {
        panic!("it is kept");
    };
    let fill = fill();
    assert_eq!((entry.version.get(), entry.age_ms), (9, 5));
    assert_eq!(
        (
            entry.body,
            entry.tags,
            entry.fresh_ms,
            entry.keep_ms,
            entry.load_ms
        ),
        (fill.body, fill.tags, 100, 200, 7)
    );
}

#[test]
fn an_age_is_that_of_the_record() {
    assert_eq!(age(NOW, NOW + 199), Some(199));
    assert_eq!(age(NOW, NOW + 200), None, "over");
    assert_eq!(age(NOW, NOW - SLACK_MS), Some(0));
    assert_eq!(age(NOW, NOW - SLACK_MS - 1), Some(100), "set back: stale");
}

#[test]
fn what_is_cut_off_or_unknown_is_foreign_and_never_a_panic() {
    let whole = stored_at(NOW);
    let body = whole.len() - 4;
    for length in 0..whole.len() {
        let cut = Value::BulkString(whole[..length].to_vec());
        let got = content(cut.clone(), HASH, NOW);
        if length < body {
            assert_eq!(got, Some(Content::Foreign), "{length}");
        }
        assert_eq!(is_of(&cut, HASH), length >= HEAD);
    }
    for (at, byte) in [
        (0, 249),
        (0, 251),
        (1, 63),
        (1, 255),
        (2, 6),
        (3, 255),
        (4, 0),
    ] {
        let mut changed = whole.clone();
        changed[at] = byte;
        let got = content(Value::BulkString(changed), HASH, NOW);
        assert_eq!(got, Some(Content::Foreign), "{at}: {byte}");
    }
    let mut no_version = whole.clone();
    no_version[12..20].fill(0);
    let got = content(Value::BulkString(no_version), HASH, NOW);
    assert_eq!(got, Some(Content::Foreign));
    for kind in [0, 3, 4, 5] {
        let head = head(HASH, kind, None, 7).to_vec();
        let got = content(Value::BulkString(head), HASH, NOW);
        assert_eq!(got, Some(Content::Nothing), "{kind}");
    }
    for other in [Value::Int(1), Value::Okay, Value::Array(vec![])] {
        assert_eq!(content(other.clone(), HASH, NOW), None);
        assert!(!is_of(&other, HASH));
    }
    assert!(is_of(&Value::Nil, HASH));
}

#[test]
fn an_answer_that_no_script_gives_is_none() {
    let head = |how: u8| {
        let left = [&[how][..], &six(5), &1e12_f64.to_le_bytes()].concat();
        Value::BulkString(left)
    };
    assert!(leased(head(0), HASH).is_some());
    assert_eq!(leased(head(1), HASH), None, "fresh, and nothing");
    assert_eq!(leased(head(4), HASH), None);
    for other in [Value::Nil, Value::Int(0), Value::Array(vec![head(0)])] {
        assert_eq!(leased(other.clone(), HASH), None);
        assert_eq!(generations(&other, 1), None);
    }
    assert_eq!(stored(&Value::Int(2)), None);
    let pair = Value::Array(vec![Value::Int(7), Value::Int(-1)]);
    let known = Generation {
        number: 7,
        invalidated_ms: None,
    };
    assert_eq!(generations(&pair, 1), Some(vec![known]));
    assert_eq!(generations(&pair, 2), None);
}

/// A value that can be stored.
fn any_fill() -> impl Strategy<Value = Fill> {
    let six = || 0..1_u64 << 47;
    let tag = ("[a-z]{0,9}", any::<u64>());
    let tags = vec(tag, 0..5);
    (
        option::of(vec(any::<u8>(), 0..40)),
        six(),
        six(),
        six(),
        tags,
    )
        .prop_map(|(body, fresh_ms, keep_ms, load_ms, tags)| {
            let tag = |(tag, generation): (String, u64)| TagGeneration {
                tag: tag.into(),
                generation,
            };
            Fill {
                body: body.map(Bytes::from),
                fresh_ms,
                keep_ms,
                load_ms,
                tags: tags.into_iter().map(tag).collect(),
            }
        })
}

/// A record as it is stored, and that record with bytes that were changed, cut off, or added.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<Index>(), any::<u8>()), 0..4);
    let rest = vec(any::<u8>(), 0..20);
    (
        any_fill(),
        any::<u64>(),
        changes,
        any::<Index>(),
        any::<bool>(),
        rest,
    )
        .prop_map(|(fill, hash, changes, cut, is_cut, rest)| {
            let mut record = value(hash, Token::new(9).unwrap(), &fill);
            for (at, byte) in changes {
                let at = at.index(record.len());
                record[at] = byte;
            }
            record.extend(rest);
            if is_cut {
                record.truncate(cut.index(record.len() + 1));
            }
            record
        })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![damaged(), vec(any::<u8>(), 0..150)]
}

/// Checks what is read of `record`, whatever it is.
fn check_content(record: &[u8], hash: u64, now: u64) -> Result<(), TestCaseError> {
    let answer = Value::BulkString(record.to_vec());
    let is_its = is_of(&answer, hash);
    let read = content(answer, hash, now).expect("bytes are content");
    let Content::Entry(entry) = read else {
        return Ok(());
    };
    prop_assert!(
        is_its && record[4..12] == hash.to_le_bytes(),
        "of another key"
    );
    prop_assert!(entry.age_ms < entry.keep_ms, "it is over");
    if let Some(body) = &entry.body {
        prop_assert!(record.ends_with(body));
    }
    let tags: usize = entry.tags.iter().map(|tag| tag.tag.len() + 9).sum();
    let body = entry.body.as_ref().map_or(0, Bytes::len);
    prop_assert!(HEAD + tags + body <= record.len(), "more than there was");
    Ok(())
}

proptest! {
    #[test]
    fn whatever_a_key_holds_is_read_within_its_bytes_and_never_as_the_value_of_another_key(
        record in any_bytes(), other in any::<u64>(), now in any::<u64>(),
    ) {
        // The time comes from a script, in microseconds.
        let now = now / 1_000;
        check_content(&record, other, now)?;
        if let Some(hash) = record.get(4..12) {
            check_content(&record, u64::from_le_bytes(hash.try_into().unwrap()), now)?;
        }
    }

    #[test]
    fn every_value_is_read_as_it_was_written(fill in any_fill(), hash in any::<u64>(), version in 1..u64::MAX) {
        let version = Token::new(version).unwrap();
        let read = content(Value::BulkString(value(hash, version, &fill)), hash, 0);
        if fill.keep_ms == 0 {
            prop_assert_eq!(read, Some(Content::Nothing));
            return Ok(());
        }
        let Fill { body, fresh_ms, keep_ms, load_ms, tags } = fill;
        let entry = Entry { version, body, age_ms: 0, fresh_ms, keep_ms, load_ms, tags };
        prop_assert_eq!(read, Some(Content::Entry(entry)));
    }

    #[test]
    fn whatever_a_script_seems_to_answer_is_never_the_value_of_another_key(
        head in prop_oneof![vec(any::<u8>(), 15), vec(any::<u8>(), 0..30)],
        how in 0..5_u8, record in any_bytes(), hash in any::<u64>(), numbers in vec(any::<i64>(), 0..9),
    ) {
        let mut head = head;
        if let Some(first) = head.first_mut() {
            *first = how;
        }
        let items = vec![Value::BulkString(head.clone()), Value::BulkString(record.clone())];
        for answer in [Value::BulkString(head), Value::Array(items)] {
            let leased = leased(answer, hash).map(|(leased, _)| leased);
            if let Some(
                Leased::Fresh(_) | Leased::Granted { stale: Some(_) } | Leased::Held { stale: Some(_), .. }
            ) = leased {
                prop_assert_eq!(&record[4..12], &hash.to_le_bytes());
            }
        }
        let items = numbers.iter().map(|number| Value::Int(*number));
        for tags in 0..5 {
            let read = generations(&Value::Array(items.clone().collect()), tags);
            prop_assert!(read.is_none_or(|read| read.len() == tags && numbers.len() == 2 * tags));
        }
    }
}
