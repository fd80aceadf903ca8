-- The outbox: one row per event, written in the transaction that makes the change, deleted when it is published.
-- {table} and what is named after it are replaced by the name of the table. Running this again changes nothing.

CREATE TABLE IF NOT EXISTS {table} (
    -- Order of the inserts. Rows may become visible in another order, and numbers of transactions that were rolled back are missing.
    sequence   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Name of the outbox.
    name       text        NOT NULL,
    -- Version of the format of this row.
    format     integer     NOT NULL,
    id         text        NOT NULL,
    stream     text        NOT NULL,
    key        text,
    -- What else is known of the event, as JSON.
    envelope   text        NOT NULL,
    body       bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often the broker refused it while it took others.
    attempts   integer     NOT NULL DEFAULT 0,
    -- Why, at last.
    reason     text,
    -- Set on dead letters, which are not published.
    dead_at    timestamptz
);

CREATE INDEX IF NOT EXISTS {waiting} ON {table} (name, sequence) WHERE dead_at IS NULL;

CREATE INDEX IF NOT EXISTS {dead} ON {table} (name, sequence) WHERE dead_at IS NOT NULL;

-- One row per outbox: which relay has the lease, and what it is publishing.
CREATE TABLE IF NOT EXISTS {relays} (
    name     text   PRIMARY KEY,
    -- Higher with every relay that takes the lease.
    fence    bigint NOT NULL,
    -- Higher with every step of the relay that has the lease. Another one takes it when this stands still.
    beat     bigint NOT NULL,
    -- The relay that has the lease; NULL: it was given back.
    holder   text,
    -- The batch in progress: sequences of its rows, as JSON; the name under which the broker remembers their numbers, and the first
    -- of these. NULL: none.
    batch    text,
    producer text,
    first    bigint
);
