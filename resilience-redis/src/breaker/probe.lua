-- Whether the server takes writes: one that changes nothing but the time to live, which it never shortens.
-- ARGV: 1 channel (unused)
local least = ordered() and KEEP_ORDER or KEEP
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), least))
return answer(1)
