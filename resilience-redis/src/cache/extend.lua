-- Extends a lease. One that was lost is not granted again: what its holder loads may be out of date.
-- ARGV: 1 the head of the lease
-- Answer: 1 extended, 0 the lease is gone
if own_token == NONE or own_length < 1 then error(redis.error_reply('ERR a lease that makes no sense: ' .. key)) end
if kind > 2 or token ~= own_token then return 0 end
redis.call('SETRANGE', key, '52', struct.pack('<I6I6', now + own_length, own_length))
if redis.call('PTTL', key) < own_length then redis.call('PEXPIRE', key, own_length) end
return 1
