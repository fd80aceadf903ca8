-- The names in use of one pattern, so that a person can list them without scanning the server.
-- KEYS: 1 names (zset: name, last announced). ARGV: names to enter (none: list them)
local KEEP = 86400000
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if #ARGV == 0 then
  return redis.call('ZRANGEBYSCORE', KEYS[1], now - KEEP, '+inf')
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - KEEP)
-- Announced later than now: the clock was set back since.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  redis.call('ZADD', KEYS[1], now, name)
end
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], KEEP)
return {}
