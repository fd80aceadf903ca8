-- Renews a lease: from now on it holds for its length again.
-- ARGV: 1 the head of the lease
-- Answer: 1 renewed, 0 the lease is gone
if kind > 2 or token == NONE or token ~= own_token or own_length < 1 then return 0 end
redis.call('SETRANGE', key, '52', struct.pack('<I6I6', now + own_length, own_length))
if redis.call('PTTL', key) < own_length then redis.call('PEXPIRE', key, own_length) end
return 1
