-- ?1 name, ?2 key, ?3 fingerprint, ?4 retention in milliseconds, ?5 the last fence that this process gave out.
INSERT INTO {table} AS r (name, key, fingerprint, fence, attempt, created_at, expires_at)
SELECT ?1, ?2, ?3, max(last + 1, ?5 + 1, {now} * 1000), 1, {now}, {now} + ?4 FROM {fence} WHERE true
ON CONFLICT (name, key) DO UPDATE SET
    fingerprint = excluded.fingerprint,
    fence = max(excluded.fence, r.fence + 1),
    attempt = CASE WHEN {expired} THEN 1 ELSE r.attempt + 1 END,
    outcome = NULL,
    created_at = CASE WHEN {expired} THEN excluded.created_at ELSE r.created_at END,
    completed_at = NULL,
    expires_at = excluded.expires_at
WHERE {expired} OR {again}
RETURNING fence, attempt
