-- ARGV: 1 channel, 2 lease, 3 budget, 4 lease_ms
local lease, budget, lease_ms = ARGV[2], number(ARGV[3], 'budget'), number(ARGV[4], 'lease_ms')
if r.state == 'open' and now >= r.till then
  enter('half_open', 0, 0)
  save()
  keep()
  log('changed', lease, 'the open time is over', -1)
end
if r.state ~= 'half_open' or ordered() then return answer(0) end
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now)
local taken = redis.call('ZCARD', KEYS[6]) + r.probes_ok + r.probes_failed
if not redis.call('ZSCORE', KEYS[6], lease) and taken >= budget then return answer(0) end
redis.call('ZADD', KEYS[6], now + lease_ms, lease)
extend(KEYS[6], 2 * lease_ms)
keep()
return answer(1)
