-- $1 name, $2 key, $3 fingerprint, $4 retention in milliseconds, $5 the longest wait, as lock_timeout takes it.
-- One statement. A completed row that can be seen is read, and nothing else happens. Else the gate, an advisory lock
-- of this transaction, lets one transaction at a time to the row; it is there because a row that nobody has committed
-- cannot be seen, let alone skipped. What comes after the wait is decided on the row as it is then, not on the snapshot.
WITH done AS MATERIALIZED (
    SELECT fingerprint, fence, attempt, outcome, completed_at, expires_at
    FROM {table}
    WHERE name = $1 AND key = $2 AND outcome IS NOT NULL AND expires_at > clock_timestamp()
),
gate AS MATERIALIZED (
    -- In this order: the clock is read when the wait is over.
    SELECT current_setting('lock_timeout') AS before,
           set_config('lock_timeout', $5, true),
           {lock}(hashtextextended($2, hashtextextended($1, '{table}'::regclass::oid::bigint)))::text <> 'false' AS mine,
           clock_timestamp() AS at
    WHERE NOT EXISTS (SELECT FROM done)
),
claimed AS (
    INSERT INTO {table} AS r (name, key, fingerprint, fence, attempt, created_at, expires_at)
    SELECT $1, $2, $3, nextval('{fence}'), 1, at, at + $4 * interval '1 ms'
    FROM gate
    WHERE mine
    ON CONFLICT (name, key) DO UPDATE SET
        fingerprint = CASE WHEN {expired} THEN EXCLUDED.fingerprint ELSE r.fingerprint END,
        fence = CASE WHEN {expired} OR {again} THEN greatest(EXCLUDED.fence, r.fence + 1) ELSE r.fence END,
        attempt = CASE WHEN {expired} THEN 1 WHEN {again} THEN r.attempt + 1 ELSE r.attempt END,
        outcome = CASE WHEN {expired} THEN NULL ELSE r.outcome END,
        created_at = CASE WHEN {expired} THEN EXCLUDED.created_at ELSE r.created_at END,
        completed_at = CASE WHEN {expired} THEN NULL ELSE r.completed_at END,
        expires_at = CASE WHEN {expired} OR {again} THEN EXCLUDED.expires_at ELSE r.expires_at END
    RETURNING fingerprint, fence, attempt, outcome, completed_at, expires_at
)
SELECT true AS open, r.fingerprint, r.fence, r.attempt, r.outcome, {age} AS age, {left} AS left,
       set_config('lock_timeout', gate.before, true)
FROM claimed r, gate
UNION ALL
SELECT true, r.fingerprint, r.fence, r.attempt, r.outcome, {age}, {left}, NULL
FROM done r
UNION ALL
-- The gate was shut: nothing was claimed.
SELECT false, NULL, NULL, NULL, NULL, NULL, NULL, set_config('lock_timeout', before, true)
FROM gate
WHERE NOT mine
