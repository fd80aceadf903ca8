-- Answer: phase, fence, attempt, age, remaining, expires, bytes of the outcome, of the checkpoint; nothing, if there is
-- no record
if r.fence == 0 then return false end
local remaining = r.phase == 'running' and remaining_ms() or 0
return { r.phase, r.fence, r.attempt, age_ms(), remaining, math.ceil((r.expires - now) / 1000),
  redis.call('HSTRLEN', key, 'outcome'), redis.call('HSTRLEN', key, 'checkpoint') }
