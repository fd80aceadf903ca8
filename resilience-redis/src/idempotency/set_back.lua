-- An outcome from the future, since the clock was set back: from now on it is kept for as long as was asked for.
-- Answer: what the clock shows
if not read or phase ~= 2 or since <= now then return now end
redis.call('SETRANGE', key, '16', struct.pack('<d', now))
-- Earlier versions did not say for how long.
if lease >= 1 and redis.call('PTTL', key) > lease then redis.call('PEXPIRE', key, lease) end
return now
