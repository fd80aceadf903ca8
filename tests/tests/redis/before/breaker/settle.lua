-- ARGV: 1 channel, 2 lease, 3 epoch, 4 outcome (success, failure, none)
local lease, epoch, outcome = ARGV[2], number(ARGV[3], 'epoch'), ARGV[4]
local till = tonumber(redis.call('ZSCORE', KEYS[6], lease) or 0)
if epoch ~= r.epoch or till == 0 then return answer(0) end
redis.call('ZREM', KEYS[6], lease)
if till <= now then return answer(0) end
if outcome == 'success' then
  r.probes_ok = r.probes_ok + 1
  redis.call('HSET', KEYS[1], 'probes_ok', r.probes_ok)
elseif outcome == 'failure' then
  r.probes_failed = r.probes_failed + 1
  redis.call('HSET', KEYS[1], 'probes_failed', r.probes_failed)
end
keep()
return answer(1)
