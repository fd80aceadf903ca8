-- Notes what an instance says about itself.
-- KEYS: 1 reports (hash: instance, report); 2 when they end (zset: instance, ms)
-- ARGV: 1 instance; 2 report (empty: the instance leaves); 3 for how long it is kept, in milliseconds
local instance, report, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not ttl or ttl < 1 or ttl > 86400000 or instance == '' or #instance > 300 or #report > 65536 then
  error(redis.error_reply('ERR a report that makes no sense: ' .. KEYS[1]))
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', '0', '100')
if report == '' then over[#over + 1] = instance end
if #over > 0 then
  redis.call('HDEL', KEYS[1], unpack(over))
  redis.call('ZREM', KEYS[2], unpack(over))
end
if report ~= '' then
  redis.call('HSET', KEYS[1], instance, report)
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ttl), instance)
  redis.call('PEXPIRE', KEYS[1], ttl)
  redis.call('PEXPIRE', KEYS[2], ttl)
end
return 1
