-- ARGV: 1 channel, 2 owner, 3 fingerprint, 4 lease, 5 retention, 6 takeover (never, ended, any)
-- Answer: new or mine, fence, attempt, previous, checkpoint | busy, remaining | done, outcome, age, fence | mismatch |
-- unknown, fence, attempt, age
local owner, fingerprint = word(2, 'owner'), ARGV[3]
local lease, retention, takeover = span(4, 'lease'), span(5, 'retention'), word(6, 'takeover')
if retention < lease then error(redis.error_reply('ERR retention below lease')) end

local function granted(how)
  local checkpoint = false
  if r.attempt > 1 or how == 'mine' then checkpoint = redis.call('HGET', key, 'checkpoint') end
  return { how, r.fence, r.attempt, r.previous, checkpoint }
end

if r.fence ~= 0 and r.fingerprint ~= fingerprint then return { 'mismatch' } end
if r.phase == 'done' then return { 'done', redis.call('HGET', key, 'outcome'), age_ms(), r.fence } end
if r.phase == 'running' then
  if r.owner == owner then
    live(lease)
    save()
    return granted('mine')
  end
  if r.till > now then
    -- A clock that has stepped back does not make a lease longer than it was.
    local longest = ahead(now, r.lease)
    if r.till > longest then
      r.till = longest
      save()
    end
    return { 'busy', remaining_ms() }
  end
end

local in_doubt = r.previous == 'unknown'
if r.phase ~= 'released' and (takeover == 'never'
    or (takeover ~= 'any' and (r.phase == 'unknown' or in_doubt))) then
  return { 'unknown', r.fence, r.attempt, age_ms() }
end
if r.fence == 0 then
  r.previous = 'none'
elseif r.phase == 'released' then
  r.previous = 'released'
elseif r.phase == 'unknown' or in_doubt then
  r.previous = 'unknown'
else
  r.previous = 'ended'
end
r.phase, r.owner, r.fence = 'running', owner, math.max(r.fence + 1, now)
r.attempt, r.since, r.retention = math.min(r.attempt + 1, 4294967295), now, retention
live(lease)
save('owner', owner, 'fingerprint', fingerprint)
return granted('new')
