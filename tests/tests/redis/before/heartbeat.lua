-- Live instances: notes one for `ttl` milliseconds from now on, or with a ttl of zero removes it.
--
-- KEYS: a zset: instance, live until (ms). ARGV: instance, ttl. Answer: number of live instances.
--
-- Time is the server's. A clock that is set back by a step keeps an instance that sends nothing more for its ttl plus the
-- step at most: each heartbeat overwrites the time of its own instance, so those that go on are right at once.
local ttl = tonumber(ARGV[2])
if not ttl or ttl ~= math.floor(ttl) or ttl < 0 or ttl >= 4503599627370496 then
  return redis.error_reply('ERR ttl is no whole number in range: ' .. tostring(ARGV[2]))
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ttl == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if last[2] then redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(last[2]) - now)) end
return redis.call('ZCARD', KEYS[1])
