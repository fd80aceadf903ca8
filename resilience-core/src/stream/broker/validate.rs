//! Checks that every broker makes: numbers that a script cannot count with and unbounded sizes are errors.

use std::collections::HashSet;

use super::{
    Action, Begin, Claim, Join, Pause, Position, Publish, RawMessage, Read, Retention, Settlement,
    StoreError,
};

/// Maximum number of items of a list.
pub const MAX_BATCH: usize = 1000;
/// Maximum size of the name of a stream, group, consumer or producer, in bytes.
pub const MAX_NAME: usize = 255;
/// Maximum size of the key of an effect, and of the id and the key of a message, in bytes.
pub const MAX_KEY: usize = 1024;
/// Maximum size of a message with its envelope in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Maximum size of a publish in bytes.
pub const MAX_PUBLISH: usize = 64 << 20;
/// Maximum size of an outcome in bytes.
pub const MAX_OUTCOME: usize = 1 << 20;
/// Maximum size of a reason in bytes.
pub const MAX_REASON: usize = 512;
/// Number of failures that are kept of a message.
pub const MAX_FAILURES: usize = 8;
/// Maximum number of extension attributes of a message.
pub const MAX_ATTRIBUTES: usize = 32;
/// Maximum number of streams of a read.
pub const MAX_STREAMS: usize = 32;
/// Maximum time that a read waits, in milliseconds.
pub const MAX_BLOCK_MS: u64 = 60_000;
/// About 30 years, in milliseconds: a moment that far ahead is still a number for a script.
pub const MAX_MS: u64 = 1_000_000_000_000;
/// One above the largest number that a script can count with.
pub const BEYOND: u64 = 1 << 53;

/// Checks the name of a stream, group, consumer or producer.
///
/// # Errors
/// If it is empty or longer than [`MAX_NAME`].
pub fn name(what: &str, name: &str) -> Result<(), StoreError> {
    between(what, name.len(), 1, MAX_NAME)
}

/// Checks a publish.
///
/// # Errors
/// If it is empty or too large, if a message [makes no sense](message), a delay is beyond [`MAX_MS`], or the numbers are not
/// between 1 and 2^53.
pub fn publish(publish: &Publish) -> Result<(), StoreError> {
    let messages = &publish.messages;
    between("number of messages", messages.len(), 1, MAX_BATCH)?;
    let mut bytes = 0;
    for outgoing in messages {
        bytes += message(&outgoing.message)?;
        ms("delay", outgoing.delay_ms)?;
    }
    between("bytes of a publish", bytes, 0, MAX_PUBLISH)?;
    let Some(sequence) = &publish.sequence else {
        return Ok(());
    };
    name("name of the producer", &sequence.producer)?;
    some_ms("keep", sequence.keep_ms)?;
    let last = sequence.first.saturating_add(messages.len() as u64);
    if sequence.first == 0 || last >= BEYOND {
        return Err(no(format!(
            "the sequence {} is not between 1 and 2^53",
            sequence.first
        )));
    }
    Ok(())
}

/// Checks a message; its size in bytes.
///
/// # Errors
/// If it has no id, is larger than [`MAX_MESSAGE`], or its key or attributes are too long or too many.
pub fn message(message: &RawMessage) -> Result<usize, StoreError> {
    let envelope = &message.envelope;
    between("id", envelope.id.len(), 1, MAX_KEY)?;
    if let Some(key) = &envelope.key {
        between("key", key.len(), 0, MAX_KEY)?;
    }
    ms_stamp(envelope.time_ms)?;
    between("attributes", envelope.attributes.len(), 0, MAX_ATTRIBUTES)?;
    let mut bytes = message.body.len() + envelope.id.len();
    for (attribute, value) in &*envelope.attributes {
        between("name of an attribute", attribute.len(), 1, 64)?;
        let plain = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit();
        if !attribute.bytes().all(plain) || RESERVED.contains(&&**attribute) {
            return Err(no(format!(
                "attribute `{attribute}`: must consist of a-z and 0-9, and be none of the envelope's own"
            )));
        }
        bytes += attribute.len() + value.len();
    }
    let texts = [
        &envelope.source,
        &envelope.event_type,
        &envelope.content_type,
    ];
    bytes += texts.iter().map(|it| it.len()).sum::<usize>();
    let texts = [&envelope.key, &envelope.trace_parent, &envelope.trace_state];
    bytes += texts
        .iter()
        .filter_map(|it| it.as_deref())
        .map(str::len)
        .sum::<usize>();
    between("bytes of a message", bytes, 0, MAX_MESSAGE)?;
    Ok(bytes)
}

/// Names that attributes do not have: those of the envelope, and one letter for a broker's own.
const RESERVED: &[&str] = &[
    "id",
    "source",
    "specversion",
    "type",
    "partitionkey",
    "schemaversion",
    "datacontenttype",
    "dataschema",
    "subject",
    "time",
    "traceparent",
    "tracestate",
    "data",
    "v",
];

/// Checks a join.
///
/// # Errors
/// If a name is empty or too long, or a time is zero or beyond [`MAX_MS`].
pub fn join(join: &Join) -> Result<(), StoreError> {
    name("name of the consumer", &join.consumer)?;
    some_ms("lease", join.lease_ms)?;
    some_ms("keep", join.keep_ms)
}

/// Checks a read.
///
/// # Errors
/// If it has no streams, too many, or one twice, asks for no messages or more than [`MAX_BATCH`], or waits too long.
pub fn read(read: &Read<'_>) -> Result<(), StoreError> {
    between("number of streams", read.streams.len(), 1, MAX_STREAMS)?;
    for stream in read.streams {
        name("name of a stream", stream)?;
    }
    let streams: HashSet<_> = read.streams.iter().collect();
    distinct(streams.len(), read.streams.len(), "stream")?;
    name("name of the consumer", read.consumer)?;
    between("number of messages", read.max, 1, MAX_BATCH)?;
    if read.block_ms > MAX_BLOCK_MS {
        return Err(no(format!(
            "a read waits for at most {MAX_BLOCK_MS} ms, not {}",
            read.block_ms
        )));
    }
    Ok(())
}

/// Checks a claim.
///
/// # Errors
/// If it asks for more than [`MAX_BATCH`] messages.
pub fn claim(claim: &Claim<'_>) -> Result<(), StoreError> {
    name("name of the consumer", claim.consumer)?;
    between("number of messages", claim.max, 0, MAX_BATCH)
}

/// Checks positions.
///
/// # Errors
/// If there are more than [`MAX_BATCH`], or one is there twice.
pub fn positions(positions: impl ExactSizeIterator<Item = Position>) -> Result<(), StoreError> {
    let given = positions.len();
    between("number of positions", given, 0, MAX_BATCH)?;
    let positions: HashSet<_> = positions.collect();
    distinct(positions.len(), given, "position")
}

/// Checks what is to begin.
///
/// # Errors
/// As [`positions`], and if a key is empty or longer than [`MAX_KEY`], or a time is zero or beyond [`MAX_MS`].
pub fn begins(begins: &[Begin]) -> Result<(), StoreError> {
    positions(begins.iter().map(|it| it.position))?;
    for begin in begins {
        between("key of an effect", begin.key.len(), 1, MAX_KEY)?;
        some_ms("keep", begin.keep_ms)?;
    }
    Ok(())
}

/// Checks settlements.
///
/// # Errors
/// As [`positions`], and if a reason, key or outcome is too long, or a time is beyond [`MAX_MS`].
pub fn settlements(settlements: &[Settlement]) -> Result<(), StoreError> {
    positions(settlements.iter().map(|it| it.position))?;
    settlements.iter().try_for_each(|it| action(&it.action))
}

fn action(action: &Action) -> Result<(), StoreError> {
    match action {
        Action::Ack(None) => Ok(()),
        Action::Ack(Some(effect)) => {
            between("key of an effect", effect.key.len(), 1, MAX_KEY)?;
            between("bytes of the outcome", effect.outcome.len(), 0, MAX_OUTCOME)?;
            if effect.fence == 0 || effect.fence >= BEYOND {
                return Err(no(format!("the fence {} was never given", effect.fence)));
            }
            some_ms("ttl", effect.ttl_ms)
        }
        Action::Retry { after_ms, reason } => {
            ms("wait", *after_ms)?;
            between("bytes of the reason", reason.len(), 0, MAX_REASON)
        }
        Action::GiveBack { after_ms } => ms("wait", *after_ms),
        Action::Dead { reason } => between("bytes of the reason", reason.len(), 0, MAX_REASON),
    }
}

/// Checks a pause.
///
/// # Errors
/// If it has no name or one longer than [`MAX_NAME`], its reason is longer than [`MAX_REASON`], or its time is zero or beyond
/// [`MAX_MS`].
pub fn pause(pause: &Pause) -> Result<(), StoreError> {
    name("name of what pauses", &pause.by)?;
    between("bytes of the reason", pause.reason.len(), 0, MAX_REASON)?;
    pause.for_ms.map_or(Ok(()), |time| some_ms("pause", time))
}

/// Checks a retention.
///
/// # Errors
/// If a time is zero or beyond [`MAX_MS`].
pub fn retention(retention: &Retention) -> Result<(), StoreError> {
    some_ms("keep", retention.keep_ms)?;
    let times = [retention.max_age_ms, retention.settled];
    times
        .into_iter()
        .flatten()
        .try_for_each(|it| some_ms("retention", it))
}

fn some_ms(what: &str, time: u64) -> Result<(), StoreError> {
    if time == 0 {
        return Err(no(format!("{what}: must be at least 1 ms")));
    }
    ms(what, time)
}

fn ms(what: &str, ms: u64) -> Result<(), StoreError> {
    if ms > MAX_MS {
        return Err(no(format!("{what}: {ms} ms is more than {MAX_MS}")));
    }
    Ok(())
}

fn ms_stamp(ms: u64) -> Result<(), StoreError> {
    if ms >= BEYOND {
        return Err(no(format!("time: {ms} is beyond 2^53")));
    }
    Ok(())
}

fn distinct(distinct: usize, given: usize, what: &str) -> Result<(), StoreError> {
    if distinct < given {
        return Err(no(format!("a {what} is there twice")));
    }
    Ok(())
}

fn between(what: &str, is: usize, least: usize, most: usize) -> Result<(), StoreError> {
    if (least..=most).contains(&is) {
        return Ok(());
    }
    Err(no(format!(
        "{what}: {is} is not between {least} and {most}"
    )))
}

fn no(reason: String) -> StoreError {
    StoreError::new(reason, false)
}
