-- Answer: instance, report, for at most 100 live instances.
-- KEYS: 1 reports (hash: instance, report); 2 when they end (zset: instance, ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for _, instance in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now), '+inf', 'LIMIT', '0', '100')) do
  local report = redis.call('HGET', KEYS[1], instance)
  if report then
    answer[#answer + 1] = instance
    answer[#answer + 1] = report
  end
end
return answer
