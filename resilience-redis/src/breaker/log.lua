-- The log of changes: an entry for each change of state and each command. Behind common.lua, in the scripts that make them.
-- KEYS: 8 log (stream)
local ENTRIES, LONGEST = 100, 512
-- A week.
local KEEP_LOG = 604800000

local function with_stage()
  return r.state == 'ramp_up' and 'ramp_up:' .. r.stage or r.state
end

local from = with_stage()

-- Comes after all else was written. Best effort: an operator's server may allow no streams. `lasting`: in milliseconds,
-- below zero for no end.
local function log(action, by, why, lasting)
  local entry = redis.pcall('XADD', KEYS[8], 'MAXLEN', ENTRIES, '*', 'format', FORMAT, 'at', now,
    'epoch', string.format('%.0f', r.epoch), 'action', action, 'from', from, 'to', with_stage(),
    'by', string.sub(by, 1, LONGEST), 'why', string.sub(why, 1, LONGEST), 'lasting', lasting)
  if type(entry) == 'string' then redis.pcall('PEXPIRE', KEYS[8], KEEP_LOG) end
end
