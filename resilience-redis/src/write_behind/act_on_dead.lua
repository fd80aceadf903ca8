-- Acts on dead letters. ARGV: what (r redrive, d discard), then keys. Answer: how many there were.
local what = ARGV[1]
if what ~= 'r' and what ~= 'd' then senseless('action', what) end
if #ARGV > 1001 then senseless('number of keys', #ARGV - 1) end
local state = read_state()
if not state then return 0 end
local now, lead = time_of(state)
local found = {}
redis.call('HLEN', ENTRIES)
redis.call('ZCARD', DUE)
redis.call('ZCARD', SINCE)
redis.call('ZCARD', LETTERS)
local seen = {}
for i = 2, #ARGV do
  local key = name_of(ARGV[i], 'key', 1024)
  local raw = not seen[key] and redis.call('HGET', DEAD, key)
  seen[key] = true
  if raw then
    local version, _, _, kind, size, begins = string.match(raw, '^1:(%d+):(%d+):(%d+):([vd]):(%d+):()')
    if not version then senseless('a dead letter of a later version', string.sub(raw, 1, 40)) end
    found[#found + 1] =
      { key = key, version = tonumber(version), kind = kind, value = string.sub(raw, begins + size) }
  end
end
if #found == 0 then return 0 end
begin_in_any_case()
local keep_ms = math.max(redis.call('PTTL', STATE), 1000)
for _, it in ipairs(found) do
  redis.call('HDEL', DEAD, it.key)
  redis.call('ZREM', LETTERS, it.key)
  if what == 'r' then
    local entry = { version = it.version, at = now, since = now, attempts = 0, kind = it.kind }
    redis.call('ZADD', DUE, text(now), it.key)
    redis.call('ZADD', SINCE, text(now), it.key)
    save_entry(it.key, entry, it.value)
  end
end
save_state(state, now, lead)
for _, key in ipairs({ ENTRIES, DUE, SINCE }) do
  keep(key, keep_ms)
end
return #found
