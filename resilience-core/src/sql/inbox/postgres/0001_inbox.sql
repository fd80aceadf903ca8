-- The inbox: one row per name and idempotency key, written in the transaction that does the work.
-- {table} and what is named after it are replaced by the name of the table. Running this again changes nothing.

CREATE TABLE IF NOT EXISTS {table} (
    name         text        NOT NULL,
    key          text        NOT NULL,
    fingerprint  bytea       NOT NULL,
    -- Greater with every claim, for ever: the sequence outlives the rows.
    fence        bigint      NOT NULL,
    -- Claims that were committed; those that were rolled back left no trace.
    attempt      integer     NOT NULL,
    -- NULL until the work is complete.
    outcome      bytea,
    created_at   timestamptz NOT NULL,
    completed_at timestamptz,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (name, key)
);

CREATE INDEX IF NOT EXISTS {expires} ON {table} (expires_at);

CREATE SEQUENCE IF NOT EXISTS {fence} AS bigint;

-- Fences follow the clock in microseconds from afar, so that a database restored from a backup does not repeat those
-- that were given out since.
SELECT setval('{fence}', floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
FROM {fence}
WHERE last_value < floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
