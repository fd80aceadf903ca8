-- Answer: phase, fence, attempt, age, remaining, expires, bytes of the outcome, of the checkpoint; nil if there is no
-- record
if not read then return false end
local remaining = phase == 1 and math.ceil(math.min(math.max(till - now, 0), lease * 1000) / 1000) or 0
local size = redis.call('STRLEN', key) - behind
return { phase, fence, attempt, math.floor(math.max(now - since, 0) / 1000), remaining,
  math.max(redis.call('PTTL', key), 0), phase == 2 and size or 0, left == 1 and size or 0 }
