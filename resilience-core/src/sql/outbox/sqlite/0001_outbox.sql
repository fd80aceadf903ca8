-- The outbox: one row per event, written in the transaction that makes the change, deleted when it is published. Times are
-- milliseconds since 1970. {table} and what is named after it are replaced by the name of the table. Running this again changes
-- nothing.

CREATE TABLE IF NOT EXISTS {table} (
    -- Order of the inserts. Never given twice: a batch in progress names rows by it.
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Name of the outbox.
    name       TEXT    NOT NULL,
    -- Version of the format of this row.
    format     INTEGER NOT NULL,
    id         TEXT    NOT NULL,
    stream     TEXT    NOT NULL,
    key        TEXT,
    -- What else is known of the event, as JSON.
    envelope   TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    created_at INTEGER NOT NULL DEFAULT ({now}),
    -- How often the broker refused it while it took others.
    attempts   INTEGER NOT NULL DEFAULT 0,
    -- Why, at last.
    reason     TEXT,
    -- Set on dead letters, which are not published.
    dead_at    INTEGER
);

CREATE INDEX IF NOT EXISTS {waiting} ON {table} (name, sequence) WHERE dead_at IS NULL;

CREATE INDEX IF NOT EXISTS {dead} ON {table} (name, sequence) WHERE dead_at IS NOT NULL;

-- One row per outbox: which relay has the lease, and what it is publishing.
CREATE TABLE IF NOT EXISTS {relays} (
    name     TEXT    PRIMARY KEY,
    -- Higher with every relay that takes the lease.
    fence    INTEGER NOT NULL,
    -- Higher with every step of the relay that has the lease. Another one takes it when this stands still.
    beat     INTEGER NOT NULL,
    -- The relay that has the lease; NULL: it was given back.
    holder   TEXT,
    -- The batch in progress: sequences of its rows, as JSON; the name under which the broker remembers their numbers, and the first
    -- of these. NULL: none.
    batch    TEXT,
    producer TEXT,
    first    INTEGER
) WITHOUT ROWID;
