-- Live instances: notes one for `ttl` milliseconds from now on, or with a ttl of zero removes it. Behind shown.lua and
-- record_time.lua: moments are in milliseconds of the record's own time, whose floor is what the instance knows of it.
--
-- KEYS: 1 live (zset: instance, live until), 2 clock (hash: at, lead, format). ARGV: instance, ttl, floor.
-- Answer: number of live instances; in milliseconds, as text, what the server's clock shows, and the time of the record.
local ttl, floor = tonumber(ARGV[2]), tonumber(ARGV[3])
if not ttl or ttl ~= math.floor(ttl) or ttl < 0 or ttl >= 4503599627370496 then
  return redis.error_reply('ERR ttl is no whole number in range: ' .. tostring(ARGV[2]))
end
shown = math.floor(shown / 1000)
local kept = redis.call('HMGET', KEYS[2], 'at', 'lead')
local now, lead = record_time(shown, tonumber(kept[1] or 0), tonumber(kept[2] or 0), floor or 0, 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ttl == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if last[2] then
  local left = math.ceil(tonumber(last[2]) - now)
  redis.call('PEXPIRE', KEYS[1], left)
  redis.call('HSET', KEYS[2], 'at', now, 'lead', lead, 'format', 1)
  redis.call('PEXPIRE', KEYS[2], left)
else
  redis.call('DEL', KEYS[2])
end
return { redis.call('ZCARD', KEYS[1]), string.format('%.0f', shown), string.format('%.0f', now) }
