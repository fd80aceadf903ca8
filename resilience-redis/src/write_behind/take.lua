-- Takes a batch, under a lease.
-- ARGV: holder, floor, lease, largest batch, how long a smaller one waits, how long the shard is kept
-- Answer: incarnation, version, entries before, age of the oldest, dead letters, what was taken (0 nothing, 1 not due, 2 another
-- holds the shard, 3 a batch), two numbers; by entry: key, entry as stored
local holder = name_of(ARGV[1], 'holder', 255)
local floor = whole(ARGV[2], 'floor', 0, EXACT - 1048576)
local lease = whole(ARGV[3], 'lease', 1, MOST)
local max = whole(ARGV[4], 'size of a batch', 1, 1000)
local age = whole(ARGV[5], 'age', 0, MOST)
local keep_ms = whole(ARGV[6], 'keep', 1, MOST)

local state = read_state()
if not state then return { 0, 0, 0, 0, 0, 0, 0, 0 } end
local now, lead = time_of(state)
local answer = {
  state.incarnation,
  state.version,
  redis.call('HLEN', ENTRIES),
  oldest_ms(now),
  redis.call('HLEN', DEAD),
  0,
  0,
  0,
}
local function done(what, one, other)
  answer[6], answer[7], answer[8] = what, one, other
  return answer
end

local first = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')[2]
if not first then return done(0, 0, 0) end
if state.ends > now then return done(2, state.ends - now, 0) end
if state.paused > now then return done(1, state.paused - now, 1) end
local batch = redis.call('ZRANGEBYSCORE', DUE, '-inf', text(now), 'LIMIT', 0, max)
local ready = first + age
if #batch == 0 or #batch < max and ready > now then return done(1, math.max(ready - now, 1), 0) end

local raws = redis.call('HMGET', ENTRIES, unpack(batch))
for _, raw in ipairs(raws) do
  entry_of(raw)
end
begin_in_any_case()
state.version = next_version(state, floor, now)
state.fence, state.holder, state.ends = state.version, holder, now + lease
save_state(state, now, lead, keep_ms)
for _, key in ipairs({ ENTRIES, DUE, SINCE, DEAD, LETTERS }) do
  keep(key, keep_ms)
end
for i, key in ipairs(batch) do
  if raws[i] then
    answer[#answer + 1] = key
    answer[#answer + 1] = raws[i]
  else
    -- Another program has removed it.
    remove_entry(key)
  end
end
return done(3, state.fence, state.pauses)
