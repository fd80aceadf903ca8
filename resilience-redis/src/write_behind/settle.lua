-- Ends a lease, and does what became of the entries.
-- ARGV: fence, pause or -1; by result: key, version, what (s sunk, r retry, d dead), wait or reason
-- Answer: 1, or 0: the lease is another's, and nothing was changed
local fence = whole(ARGV[1], 'fence', 1, EXACT - 1)
local pause = whole(ARGV[2], 'pause', -1, MOST)
local many = whole((#ARGV - 2) / 4, 'number of results', 0, 1000)
local results = {}
for i = 1, many do
  local at = i * 4 - 1
  local it = { key = name_of(ARGV[at], 'key', 1024), what = ARGV[at + 2], word = ARGV[at + 3] }
  it.version = whole(ARGV[at + 1], 'version', 1, EXACT - 1)
  if it.what == 'r' then
    it.wait = whole(it.word, 'wait', 0, MOST)
  elseif it.what == 'd' then
    if #it.word > 512 then senseless('size of a reason', #it.word) end
  elseif it.what ~= 's' then
    senseless('result', it.what)
  end
  results[i] = it
end

local state = read_state()
if not state then return 0 end
if state.fence ~= fence then return state.settled == fence and 1 or 0 end
local now, lead = time_of(state)
redis.call('ZCARD', DUE)
redis.call('ZCARD', SINCE)
redis.call('HLEN', DEAD)
redis.call('ZCARD', LETTERS)
for _, it in ipairs(results) do
  it.entry = entry_of(redis.call('HGET', ENTRIES, it.key))
end

begin_in_any_case()
local keep_ms, added = math.max(redis.call('PTTL', STATE), 1000), false
state.fence, state.ends, state.holder, state.settled = 0, 0, '', fence
for _, it in ipairs(results) do
  local key, entry = it.key, it.entry
  if it.what == 's' then state.pauses = 0 end
  if entry and it.what == 'r' then
    entry.attempts = entry.attempts + 1
    redis.call('ZADD', DUE, text(now + it.wait), key)
    save_entry(key, entry, entry.value())
  elseif entry and entry.version == it.version then
    if it.what == 'd' then
      local head = '1:%.0f:%.0f:%.0f:%s:%d:'
      head = string.format(head, entry.version, now, entry.attempts + 1, entry.kind, #it.word)
      redis.call('HSET', DEAD, key, head .. it.word .. entry.value())
      redis.call('ZADD', LETTERS, 0, key)
      added = true
    end
    remove_entry(key)
  elseif entry then
    -- Written meanwhile: begins again.
    entry.since, entry.attempts = entry.at, 0
    redis.call('ZADD', SINCE, text(entry.since), key)
    if redis.call('ZSCORE', DUE, key) ~= '0' then redis.call('ZADD', DUE, text(entry.at), key) end
    save_entry(key, entry, entry.value())
  end
end
if pause >= 0 then
  state.pauses, state.paused = state.pauses + 1, now + pause
end
save_state(state, now, lead)
if added then
  redis.call('PEXPIRE', DEAD, keep_ms)
  redis.call('PEXPIRE', LETTERS, keep_ms)
end
return 1
