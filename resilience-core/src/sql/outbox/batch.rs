//! A batch of rows on its way to the broker: what is sent next, and what the answers say of each row. Pure.
//!
//! Each row of a batch has a number, which was written down before anything was sent, and which never belongs to another row.
//! So a row may be sent again, by whichever relay, until the broker has answered for it. The broker takes numbers in rising
//! order only: rows are sent in order, and none is passed by. A row that is refused ends the batch; those behind it get other
//! numbers, in another batch.

use std::{ops::Range, sync::Arc};

use super::{dialect::Begun, row::StoredRow};
use crate::stream::{
    Outgoing, ProducerSequence, Publish, Published, RawMessage,
    broker::{StoreError, validate},
};

/// What is to be done after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Send what is next.
    GoOn,
    /// Wait, and send the same again.
    Pause,
    /// The next row is refused by itself.
    Refused(Refused),
}

/// A row that the broker refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) sequence: i64,
    pub(super) id: Arc<str>,
    pub(super) key: Option<Arc<str>>,
    /// How often it was refused before.
    pub(super) attempts: u32,
    pub(super) reason: String,
}

/// Rows that are sent in one step.
#[derive(Clone, Debug)]
pub(super) struct Run {
    rows: Range<usize>,
    pub(super) stream: Arc<str>,
    pub(super) publish: Publish,
}

#[derive(Debug)]
pub(super) struct Batch {
    producer: Arc<str>,
    keep_ms: u64,
    rows: Vec<Row>,
    /// The first row that was not sent yet, or not answered for.
    at: usize,
    /// Maximum number of rows of a run: all, unless the broker refuses runs.
    chunk: usize,
    /// Refusals in a row.
    refusals: u32,
}

#[derive(Debug)]
struct Row {
    sequence: i64,
    number: u64,
    stream: Arc<str>,
    /// The message, or why it cannot be one.
    message: Result<RawMessage, String>,
    /// How often it was refused before, in other batches. If it was, it is sent alone.
    attempts: u32,
    /// An attempt had no answer, or an ambiguous one: it may have been stored.
    unsure: bool,
}

/// Refusals of a run before its rows are sent in smaller ones: until then it may be the broker's fault.
const PATIENCE: u32 = 3;
/// Refusals of a row that may have been stored by an earlier attempt, before it is given up.
const UNSURE_PATIENCE: u32 = 8;

impl Batch {
    /// The rows of a batch that was written down, as far as they are in the table.
    pub(super) fn new(begun: &Begun, rows: Vec<StoredRow>, keep_ms: u64) -> Self {
        let row = |row: StoredRow| {
            let index = begun.sequences.iter().position(|&it| it == row.sequence)?;
            Some(Row::new(begun.first.unsigned_abs() + index as u64, row))
        };
        Self {
            producer: begun.producer.as_str().into(),
            keep_ms,
            rows: rows.into_iter().filter_map(row).collect(),
            at: 0,
            chunk: usize::MAX,
            refusals: 0,
        }
    }

    /// The rows to send now; `None`: the broker has answered for each.
    pub(super) fn next(&mut self) -> Option<Run> {
        let invalid = |row: &Row| row.message.is_err();
        self.at += self.rows[self.at..]
            .iter()
            .take_while(|row| invalid(row))
            .count();
        let first = self.rows.get(self.at)?;
        let most = match first.attempts {
            0 => self.chunk.min(validate::MAX_BATCH),
            _ => 1,
        };
        let mut messages = Vec::new();
        for (number, row) in (first.number..).zip(&self.rows[self.at..]).take(most) {
            let joins = messages.is_empty()
                || row.number == number && row.stream == first.stream && row.attempts == 0;
            let (true, Ok(message)) = (joins, &row.message) else {
                break;
            };
            messages.push(Outgoing {
                message: message.clone(),
                delay_ms: 0,
            });
        }
        Some(Run {
            rows: self.at..self.at + messages.len(),
            stream: Arc::clone(&first.stream),
            publish: Publish {
                messages,
                sequence: Some(ProducerSequence {
                    producer: Arc::clone(&self.producer),
                    first: first.number,
                    keep_ms: self.keep_ms,
                }),
            },
        })
    }

    /// Notes what the broker answered to a run.
    pub(super) fn answered(
        &mut self,
        run: &Run,
        answer: &Result<Vec<Published>, StoreError>,
    ) -> Then {
        match answer {
            Ok(published) if published.len() == run.rows.len() => {
                self.at = run.rows.end;
                self.refusals = 0;
                self.chunk = self.chunk.saturating_mul(2);
                Then::GoOn
            }
            Err(error) if !error.ambiguous => self.refused(run.rows.clone(), &error.reason),
            _ => {
                let rows = &mut self.rows[run.rows.clone()];
                rows.iter_mut().for_each(|row| row.unsure = true);
                self.refusals = 0;
                Then::Pause
            }
        }
    }

    fn refused(&mut self, rows: Range<usize>, reason: &str) -> Then {
        self.refusals += 1;
        let row = &self.rows[rows.start];
        if self.chunk == usize::MAX && row.attempts == 0 {
            // Not known yet whose fault it is.
            if self.refusals >= PATIENCE {
                (self.chunk, self.refusals) = (rows.len().div_ceil(2), 0);
            }
            return Then::Pause;
        }
        if rows.len() > 1 {
            (self.chunk, self.refusals) = (rows.len() / 2, 0);
            return Then::GoOn;
        }
        if row.unsure && self.refusals < UNSURE_PATIENCE {
            return Then::Pause;
        }
        let doubt = match row.unsure {
            true => "; an earlier attempt had no answer, and may have published it",
            false => "",
        };
        let envelope = row
            .message
            .as_ref()
            .map(|it| it.envelope.clone())
            .unwrap_or_default();
        Then::Refused(Refused {
            sequence: row.sequence,
            id: envelope.id,
            key: envelope.key,
            attempts: row.attempts,
            reason: format!("{reason}{doubt}"),
        })
    }

    /// The rows that are in the stream: to be deleted.
    pub(super) fn stored(&self) -> Vec<i64> {
        let stored = self.rows[..self.at]
            .iter()
            .filter(|row| row.message.is_ok());
        stored.map(|row| row.sequence).collect()
    }

    /// The rows that cannot be messages, and why: to become dead letters.
    pub(super) fn invalid(&self) -> impl Iterator<Item = (i64, &str)> {
        let rows = self.rows.iter();
        rows.filter_map(|row| Some((row.sequence, row.message.as_ref().err()?.as_str())))
    }
}

impl Row {
    fn new(number: u64, row: StoredRow) -> Self {
        let (sequence, attempts) = (row.sequence, row.attempts.max(0).cast_unsigned());
        let stream: Arc<str> = row.stream.as_str().into();
        let message = row.message().and_then(|message| {
            let checked = validate::name("name of the stream", &stream);
            let checked = checked.and_then(|()| validate::message(&message));
            checked.map(|_| message).map_err(|error| error.reason)
        });
        Self {
            sequence,
            number,
            stream,
            message,
            attempts,
            unsure: false,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
