-- The record of one key; stands in front of every script of this folder. See resilience_core's `Record`: the same
-- fields, the same steps, the same answers.
--
-- KEYS: 1 record (hash): state, owner, fingerprint, checkpoint, outcome. The state is one line of text, because it
-- changes as a whole: phase, fence, attempt, previous, since, until, lease, retention, expires; moments in microseconds
-- on the server's clock, leases and retentions in milliseconds.
-- ARGV: 1 channel, then what the script says.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local key = KEYS[1]

local function number(at, name, least)
  local n = tonumber(ARGV[at])
  if not n or n < least or n ~= math.floor(n) or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number in range: ' .. tostring(ARGV[at])))
  end
  return n
end

-- About 30 years.
local function span(at, name)
  local ms = number(at, name, 1)
  if ms > 1000000000000 then error(redis.error_reply('ERR ' .. name .. ' is too long: ' .. ARGV[at])) end
  return ms
end

local function word(at, name)
  local text = ARGV[at]
  if not text or text == '' then error(redis.error_reply('ERR no ' .. name)) end
  return text
end

local r = { phase = 'released', fence = 0, attempt = 0, previous = 'none', since = 0, till = 0, lease = 0,
  retention = 0, expires = 0, owner = '', fingerprint = '' }
-- Whether there is a record, and whether whoever waits has to be told.
local known, tell = false, false

local read = redis.call('HMGET', key, 'state', 'owner', 'fingerprint')
if read[1] then
  local phase, fence, attempt, previous, since, till, lease, retention, expires =
    string.match(read[1], '^(%a+) (%d+) (%d+) (%a+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not phase or not read[2] or not read[3] then error(redis.error_reply('ERR no record: ' .. key)) end
  expires = tonumber(expires)
  if expires > now then
    r.phase, r.fence, r.attempt, r.previous = phase, tonumber(fence), tonumber(attempt), previous
    r.since, r.till, r.lease = tonumber(since), tonumber(till), tonumber(lease)
    r.retention, r.expires, r.owner, r.fingerprint = tonumber(retention), expires, read[2], read[3]
    known = true
  else
    -- What is over stays over, also when the clock steps back. The key would expire within the millisecond.
    redis.call('DEL', key)
  end
end

local function ahead(from, ms) return from + ms * 1000 end

local function remaining_ms() return math.ceil(math.max(r.till - now, 0) / 1000) end

local function age_ms() return math.floor(math.max(now - r.since, 0) / 1000) end

-- A sign of life.
local function live(lease)
  r.lease, r.till, r.expires = lease, ahead(now, lease), ahead(now, math.max(lease, r.retention))
end

local function rest(phase)
  if r.phase == phase then return end
  r.phase, r.since, r.till, r.expires, tell = phase, now, 0, ahead(now, r.retention), true
end

-- Writes the state, and further fields and values. A server that is out of memory refuses what would take more of it,
-- but not in the middle of a script: beginning with the expiry, whatever was granted can be ended even then, and only
-- new keys are refused.
local function save(...)
  local left = math.ceil((r.expires - now) / 1000)
  if known then redis.call('PEXPIRE', key, left) end
  local state = string.format('%s %.0f %.0f %s %.0f %.0f %.0f %.0f %.0f', r.phase, r.fence, r.attempt, r.previous,
    r.since, r.till, r.lease, r.retention, r.expires)
  redis.call('HSET', key, 'state', state, ...)
  if not known then redis.call('PEXPIRE', key, left) end
  -- Without the right to publish, whoever waits looks again by themselves.
  if tell then redis.pcall('PUBLISH', ARGV[1], r.phase) end
end

-- The outcome stays, should somebody say so again.
local function done(outcome, ttl, ...)
  if r.phase == 'done' then return save() end
  rest('done')
  r.expires = ahead(now, ttl)
  redis.call('HDEL', key, 'checkpoint')
  save('outcome', outcome, ...)
end

-- One step of the holder, from one of the phases `from`. What the holder says of itself is ARGV 2 to 7.
local function step(from, apply)
  local owner, fence, attempt = word(2, 'owner'), number(3, 'fence', 1), number(4, 'attempt', 1)
  local previous, fingerprint, retention = word(5, 'previous'), ARGV[6], span(7, 'retention')
  if not string.find(previous, '^%a+$') or not fingerprint then error(redis.error_reply('ERR no holder')) end
  if r.fence == fence and r.owner == owner then
    if not from[r.phase] then return 'over' end
    apply()
    return 'kept'
  end
  if r.fence >= fence then return 'taken' end
  -- Fences are made of the clock, so this one tells when the claim was granted.
  if now > ahead(fence, retention) then return 'gone' end
  -- Brought back. Only the checkpoint of the same work is of use.
  if r.fingerprint == fingerprint then
    redis.call('HDEL', key, 'outcome')
  else
    redis.call('DEL', key)
    known = false
  end
  r.phase, r.owner, r.fence, r.attempt, r.previous = 'running', owner, fence, attempt, previous
  r.fingerprint, r.since, r.retention, r.lease, r.till = fingerprint, fence, retention, 0, 0
  apply('owner', owner, 'fingerprint', fingerprint)
  return 'restored'
end
