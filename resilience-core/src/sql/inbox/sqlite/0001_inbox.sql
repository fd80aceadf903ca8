-- The inbox: one row per name and idempotency key, written in the transaction that does the work. Times are milliseconds since
-- 1970. {table} and what is named after it are replaced by the name of the table. Running this again changes nothing.

CREATE TABLE IF NOT EXISTS {table} (
    name         TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    fingerprint  BLOB    NOT NULL,
    -- Greater with every claim.
    fence        INTEGER NOT NULL,
    -- Claims that were committed; those that were rolled back left no trace.
    attempt      INTEGER NOT NULL,
    -- NULL until the work is complete.
    outcome      BLOB,
    created_at   INTEGER NOT NULL,
    completed_at INTEGER,
    expires_at   INTEGER NOT NULL,
    PRIMARY KEY (name, key)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS {expires} ON {table} (expires_at);

-- The last fence, which outlives the rows.
CREATE TABLE IF NOT EXISTS {fence} (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
);

INSERT INTO {fence} (id, last) VALUES (1, 0) ON CONFLICT (id) DO NOTHING;

CREATE TRIGGER IF NOT EXISTS {inserted} AFTER INSERT ON {table}
BEGIN
    UPDATE {fence} SET last = max(last, NEW.fence);
END;

CREATE TRIGGER IF NOT EXISTS {updated} AFTER UPDATE OF fence ON {table}
BEGIN
    UPDATE {fence} SET last = max(last, NEW.fence);
END;
