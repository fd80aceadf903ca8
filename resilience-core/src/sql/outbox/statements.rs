//! The statements about one table. What the databases write differently is filled in.

use ::sqlx::SqlStr;

use super::super::{statement::text, table::Table};

/// The statements about one table.
#[derive(Debug)]
pub struct Statements {
    pub(super) schema: SqlStr,
    /// Of a publish: what stands before the rows, and after them. The second part is followed by the name of the outbox and
    /// the third, if it is not empty.
    pub(super) insert: [String; 3],
    /// Locks the keys of a publish; before it, if at all.
    pub(super) lock: Option<SqlStr>,
    pub(super) enter: SqlStr,
    pub(super) look: SqlStr,
    pub(super) take: SqlStr,
    pub(super) beat: SqlStr,
    pub(super) give_back: SqlStr,
    pub(super) next: SqlStr,
    pub(super) begin: SqlStr,
    pub(super) end: SqlStr,
    pub(super) rows: SqlStr,
    pub(super) delete: SqlStr,
    pub(super) refuse: SqlStr,
    pub(super) kill: SqlStr,
    pub(super) waiting: SqlStr,
    pub(super) dead: SqlStr,
    pub(super) dead_letters: SqlStr,
    pub(super) redrive: SqlStr,
    pub(super) discard: SqlStr,
}

/// What the databases write differently.
pub(super) struct Spelling {
    pub(super) schema: &'static str,
    /// Before and after the insert of a publish.
    pub(super) insert: [&'static str; 3],
    pub(super) lock: Option<&'static str>,
    /// Whether a column is among the numbers of a JSON array, the second parameter.
    pub(super) among: &'static str,
    /// Whether a column is among the texts of a JSON array, the third parameter.
    pub(super) among_keys: &'static str,
    /// The present time, in the type of the columns.
    pub(super) now: &'static str,
    /// `created_at` in milliseconds since 1970.
    pub(super) created_ms: &'static str,
    /// The age of a moment in milliseconds: `age(`, moment, `)`.
    pub(super) age_ms: [&'static str; 2],
}

/// Rows that are counted at most: what waits behind them is not looked at.
pub(super) const MOST_COUNTED: u64 = 100_000;

const MINE: &str = "WHERE name = $1 AND fence = $2";

impl Spelling {
    pub(super) fn fill(&self, table: &Table) -> Statements {
        let [age, of] = self.age_ms;
        let write = |template: &str| {
            template
                .replace("{table}", &table.quoted(""))
                .replace("{relays}", &table.quoted("_relays"))
                .replace("{waiting}", &table.bare("_waiting"))
                .replace("{dead}", &table.bare("_dead"))
                .replace("{among}", self.among)
                .replace("{among_keys}", self.among_keys)
                .replace("{now}", self.now)
                .replace("{created_ms}", self.created_ms)
                .replace("{mine}", MINE)
        };
        let fill = |template: &str| text(write(template));
        Statements {
            schema: fill(self.schema),
            insert: self.insert.map(write),
            lock: self.lock.map(fill),
            enter: fill(
                "INSERT INTO {relays} (name, fence, beat) VALUES ($1, 0, 0) ON CONFLICT (name) DO NOTHING",
            ),
            look: fill("SELECT fence, beat, holder FROM {relays} WHERE name = $1"),
            take: fill(
                "UPDATE {relays} SET fence = fence + 1, beat = beat + 1, holder = $2 \
                 WHERE name = $1 AND fence = $3 AND beat = $4",
            ),
            beat: fill(
                "UPDATE {relays} SET beat = beat + 1 {mine} RETURNING batch, producer, first",
            ),
            give_back: fill("UPDATE {relays} SET holder = NULL {mine}"),
            next: fill(
                "SELECT sequence, CAST(length(envelope) + length(body) AS bigint) FROM {table} \
                 WHERE name = $1 AND dead_at IS NULL AND NOT sequence {among} \
                 AND (key IS NULL OR NOT key {among_keys}) ORDER BY sequence LIMIT $4",
            ),
            begin: fill("UPDATE {relays} SET batch = $3, producer = $4, first = $5 {mine}"),
            end: fill("UPDATE {relays} SET batch = NULL, producer = NULL, first = NULL {mine}"),
            rows: fill(
                "SELECT sequence, format, id, stream, key, envelope, body, attempts, {created_ms} FROM {table} \
                 WHERE name = $1 AND sequence {among} AND dead_at IS NULL ORDER BY sequence",
            ),
            delete: fill("DELETE FROM {table} WHERE name = $1 AND sequence {among}"),
            refuse: fill(
                "UPDATE {table} SET attempts = attempts + 1, reason = $3 WHERE name = $1 AND sequence = $2",
            ),
            kill: fill(
                "UPDATE {table} SET attempts = attempts + 1, reason = $3, dead_at = {now} WHERE name = $1 AND sequence = $2",
            ),
            waiting: fill(&format!(
                "SELECT count(*), {age}min(created_at){of} FROM (SELECT created_at FROM {{table}} \
                 WHERE name = $1 AND dead_at IS NULL ORDER BY sequence LIMIT {MOST_COUNTED}) AS w",
            )),
            dead: fill(&format!(
                "SELECT count(*) FROM (SELECT 1 AS one FROM {{table}} WHERE name = $1 AND dead_at IS NOT NULL LIMIT {MOST_COUNTED}) AS d",
            )),
            dead_letters: fill(&format!(
                "SELECT sequence, format, id, stream, key, envelope, body, attempts, {{created_ms}}, reason, {age}dead_at{of} \
                 FROM {{table}} WHERE name = $1 AND dead_at IS NOT NULL ORDER BY sequence LIMIT $2",
            )),
            redrive: fill(
                "UPDATE {table} SET attempts = 0, dead_at = NULL WHERE name = $1 AND sequence {among} AND dead_at IS NOT NULL",
            ),
            discard: fill(
                "DELETE FROM {table} WHERE name = $1 AND sequence {among} AND dead_at IS NOT NULL",
            ),
        }
    }
}
