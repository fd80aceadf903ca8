-- One shard of a write-behind. Steps and answers are those of resilience_core's `write_behind::record::ShardRecord`.
--
-- KEYS: 1 state (string: format, and numbers, with `:` between them, and the holder), 2 entries (hash: by key, format, version, when
-- written, since when not sunk, attempts, kind, and the value), 3 due (zset: key, when due), 4 since (zset: key, since when not sunk),
-- 5 dead letters (hash: by key, format, version, when set aside, attempts, kind, size of the reason, reason, value), 6 their keys (zset, in
-- order)
-- Moments are milliseconds of the shard's time.
local STATE, ENTRIES, DUE, SINCE, DEAD, LETTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local MOST, EXACT = 1000000000000, 9007199254740992

local function senseless(what, value)
  error(redis.error_reply('ERR ' .. what .. ' makes no sense: ' .. tostring(value)))
end

local function whole(value, what, least, most)
  local number = tonumber(value)
  if not number or number ~= math.floor(number) or number < least or number > most then senseless(what, value) end
  return number
end

local function name_of(value, what, most)
  if not value or value == '' or #value > most then senseless(what, value) end
  return value
end

local function text(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local shown = time[1] * 1000 + math.floor(time[2] / 1000)

local FIELDS = { 'incarnation', 'shards', 'version', 'at', 'lead', 'fence', 'ends', 'settled', 'pauses', 'paused' }
local PATTERN = '^1' .. string.rep(':(%d+)', #FIELDS) .. ':(.*)$'

-- The state. Nothing: there is none.
local function read_state()
  local raw = redis.call('GET', STATE)
  if not raw then return nil end
  local found = { string.match(raw, PATTERN) }
  if not found[1] then senseless('a shard of a later version', string.sub(raw, 1, 40)) end
  local state = { holder = found[#FIELDS + 1] }
  for i, field in ipairs(FIELDS) do state[field] = tonumber(found[i]) end
  return state
end

-- The time of the shard, and how far it is ahead of the clock.
local function time_of(state) return record_time(shown, state.at, state.lead, 0, 0) end

-- Keys live for twice as long as they are kept, so that this is rarely to be said again.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left ~= -2 and left < ms then redis.call('PEXPIRE', key, ms * 2) end
end

local function save_state(state, now, lead, ms)
  state.at, state.lead = now, lead
  local words = { '1' }
  for i, field in ipairs(FIELDS) do words[i + 1] = text(state[field]) end
  words[#words + 1] = state.holder
  if ms then
    redis.call('SET', STATE, table.concat(words, ':'), 'PX', text(ms * 2))
  else
    redis.call('SET', STATE, table.concat(words, ':'), 'KEEPTTL')
  end
end

-- Steps that end something are done on a full server too: it refuses what needs memory only as the first change of a script.
local function begin_in_any_case()
  local left = redis.call('PTTL', STATE)
  redis.call('PEXPIRE', STATE, math.max(left, 1000))
end

local ENTRY = '^1:(%d+):(%d+):(%d+):(%d+):([vd]):()'

local function entry_of(raw)
  if not raw then return nil end
  local version, at, since, attempts, kind, begins = string.match(raw, ENTRY)
  if not version then senseless('an entry of a later version', string.sub(raw, 1, 40)) end
  return {
    version = tonumber(version),
    at = tonumber(at),
    since = tonumber(since),
    attempts = tonumber(attempts),
    kind = kind,
    value = function() return string.sub(raw, begins) end,
  }
end

local function save_entry(key, entry, value)
  local head = string.format(
    '1:%.0f:%.0f:%.0f:%.0f:%s:',
    entry.version,
    entry.at,
    entry.since,
    entry.attempts,
    entry.kind
  )
  redis.call('HSET', ENTRIES, key, head .. value)
end

local function remove_entry(key)
  redis.call('HDEL', ENTRIES, key)
  redis.call('ZREM', DUE, key)
  redis.call('ZREM', SINCE, key)
end

local function oldest_ms(now)
  local oldest = redis.call('ZRANGE', SINCE, 0, 0, 'WITHSCORES')[2]
  return oldest and math.max(now - oldest, 0) or 0
end

local function next_version(state, floor, now) return math.max(state.version + 1, floor + 1, now * 1000) end
