-- Stores changes, all or none.
-- KEYS: 7 the writer (string: format, number of its last write, first version of that)
-- ARGV: number, how long it is remembered, floor, incarnation of a shard that does not exist, number of shards, most entries, most age,
-- most entries when full, how long the shard is kept; by change: key, kind (v, d), value
-- Answer: incarnation, version and entries before, what became of it, a number
local WRITER = KEYS[7]
local number = whole(ARGV[1], 'number', 1, EXACT - 1)
local remember = whole(ARGV[2], 'remember', 1, MOST)
local floor = whole(ARGV[3], 'floor', 0, EXACT - 1048576)
local incarnation = whole(ARGV[4], 'incarnation', 1, EXACT - 1)
local shards = whole(ARGV[5], 'number of shards', 1, 1024)
local most = whole(ARGV[6], 'most entries', 1, EXACT - 1)
local most_age = whole(ARGV[7], 'most age', 1, MOST)
local most_first = whole(ARGV[8], 'most entries when full', 0, EXACT - 1)
local keep_ms = whole(ARGV[9], 'keep', 1, MOST)
local many = whole((#ARGV - 9) / 3, 'number of changes', 1, 1000)
for at = 10, #ARGV, 3 do
  name_of(ARGV[at], 'key', 1024)
  if ARGV[at + 1] ~= 'v' and ARGV[at + 1] ~= 'd' then senseless('kind', ARGV[at + 1]) end
end

local state = read_state()
local entries = redis.call('HLEN', ENTRIES)
local lived, reached = state and state.incarnation or 0, state and state.version or 0
local function answer(what, value) return { lived, reached, entries, what, value } end

local known = redis.call('GET', WRITER)
if known then
  local last, first = string.match(known, '^1:(%d+):(%d+)$')
  if not last then senseless('a writer of a later version', known) end
  if tonumber(last) == number then
    -- Written again, so that it can be waited for on this connection that replicas have it.
    redis.call('PEXPIRE', WRITER, remember)
    return answer(3, tonumber(first))
  end
  if tonumber(last) > number then return answer(4, 0) end
end

local dead = redis.call('HLEN', DEAD)
redis.call('ZCARD', DUE)
redis.call('ZCARD', LETTERS)
if not state then
  state = { incarnation = incarnation, holder = '' }
  for _, field in ipairs(FIELDS) do state[field] = state[field] or 0 end
  state.shards = shards
end
if state.shards ~= shards then
  if entries + dead > 0 then return answer(6, state.shards) end
  state.shards = shards
end
local now, lead = time_of(state)
local found, added = {}, 0
for i = 1, many do
  found[i] = entry_of(redis.call('HGET', ENTRIES, ARGV[7 + i * 3]))
  if not found[i] then added = added + 1 end
end
local oldest = oldest_ms(now)
local full = added > 0 and entries >= most or oldest >= most_age
if full and entries + added > most_first then return answer(5, oldest) end

local first = next_version(state, floor, now)
local last = first + many - 1
state.version = last
save_state(state, now, lead, keep_ms)
redis.call('SET', WRITER, string.format('1:%.0f:%.0f', number, first), 'PX', ARGV[2])
for i = 1, many do
  local at = 7 + i * 3
  local key, earlier = ARGV[at], found[i]
  if dead > 0 and redis.call('HDEL', DEAD, key) == 1 then redis.call('ZREM', LETTERS, key) end
  local entry = { version = first + i - 1, at = now, since = now, attempts = 0, kind = ARGV[at + 1] }
  if earlier then
    entry.since, entry.attempts = earlier.since, earlier.attempts
  else
    redis.call('ZADD', SINCE, text(now), key)
  end
  if full then
    redis.call('ZADD', DUE, 0, key)
  elseif not earlier then
    redis.call('ZADD', DUE, text(now), key)
  end
  save_entry(key, entry, ARGV[at + 2])
end
local left = redis.call('PTTL', ENTRIES)
if left < keep_ms then
  for _, key in ipairs({ ENTRIES, DUE, SINCE, DEAD, LETTERS }) do
    keep(key, keep_ms)
  end
end
return answer(full and 2 or 1, first)
