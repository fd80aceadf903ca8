-- The names behind the counts of live and failing instances.
-- ARGV: 1 channel (unused), 2 how many of each at most
-- Answer: number of live instances, number that fail; of the live ones in turn: instance, time left, time since its last report
-- (-1: not told), whether it fails (-1: not told), state (empty: not told); the names that fail
local most = number(ARGV[2], 'most')
local from = '(' .. now
local live = redis.call('ZREVRANGEBYSCORE', KEYS[3], '+inf', from, 'WITHSCORES', 'LIMIT', 0, most)
local failing = redis.call('ZREVRANGEBYSCORE', KEYS[4], '+inf', from, 'LIMIT', 0, most)
local is_any = #failing > 0

local function is_failing(voter)
  return is_any and tonumber(redis.call('ZSCORE', KEYS[4], voter) or 0) > now and 1 or 0
end

local members = {}
for i = 1, #live, 2 do
  local instance, left = live[i], math.ceil(live[i + 1] - now)
  local told = redis.call('HGET', KEYS[7], instance) or ''
  local state, at, voter = string.match(told, '^%d+:(%d*):(%d+):(.*)$')
  local fails = is_failing(voter and voter ~= '' and voter or instance)
  -- The name of an instance of an earlier version is not known: it may be that of another.
  if not at and is_any and fails == 0 then fails = -1 end
  for _, word in ipairs({ instance, left, at and math.max(now - at, 0) or -1, fails, state or '' }) do
    members[#members + 1] = word
  end
end
return { redis.call('ZCOUNT', KEYS[3], from, '+inf'), redis.call('ZCOUNT', KEYS[4], from, '+inf'), members, failing }
