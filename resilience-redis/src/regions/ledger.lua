-- The record of one region. Moments are in microseconds of the record's own time.
--
-- KEYS: 1 ledger (hash: version, text, at, lead), 2 demand (hash: instance, demand:until)

local function whole(value, name)
  local n = tonumber(value)
  if not n or n ~= math.floor(n) or n < 0 or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number below 2^53: ' .. tostring(value)))
  end
  return n
end

local kept = redis.call('HMGET', KEYS[1], 'version', 'text', 'at', 'lead')
local noted_lead = tonumber(kept[4] or 0)
local now, lead = record_time(shown, tonumber(kept[3] or 0), noted_lead, 0, 0)

-- Notes the time of the record, which is kept for as long as what was written with it.
local function note(ttl)
  redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'lead', string.format('%.0f', lead))
  if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
end
