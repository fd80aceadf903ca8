-- Removes old messages.
-- ARGV: 1 maximum age, 2 maximum length, 3 how long a group without consumers is waited for (-1: not by this), 4 how long the
-- stream is kept
-- Answer: nothing: there is no stream; or the number of messages removed, of those that some group was not given, and left
local age, most = whole(ARGV[1], 'an age', -1, MOST), whole(ARGV[2], 'a length', -1, EXACT - 1)
local dead_after, ms = whole(ARGV[3], 'a time', -1, MOST), whole(ARGV[4], 'a time', 1, MOST)
local groups = look()
if not groups then return false end
-- Behind this, a server that is out of memory does not refuse to remove messages.
redis.call('PEXPIRE', LOG, math.max(redis.call('PTTL', LOG), ms))
local kept = math.max(tonumber(redis.call('HGET', META, 'keep') or 0), ms)
redis.call('HSET', META, 'format', FORMAT, 'keep', kept)
for i = 1, 3 do keep(KEYS[i], ms) end
measure()

-- When a consumer of the group was seen last.
local function seen(name, state)
  local last = tonumber(state and redis.call('HGET', state, 'seen') or 0)
  for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', LOG, name)) do last = math.max(last, now - named(list).idle) end
  return last
end

local lags, is_exact, settled = {}, true, nil
for name, it in pairs(groups) do
  local state, cursor = key_of(name, ''), it['last-delivered-id']
  local number, exact = lag(cursor, state)
  lags[#lags + 1] = { state, number }
  is_exact = is_exact and exact
  if dead_after >= 0 and now - seen(name, state) < dead_after then
    local unsettled = first_unsettled(name)
    -- The end of what may go: just behind the cursor, at the next message or beyond all.
    local after = redis.call('XRANGE', LOG, '(' .. cursor, '+', 'COUNT', 1)[1]
    local bound = unsettled and order(unsettled) or after and order(after[1]) or string.rep('9', 40)
    if after and order(after[1]) < bound then bound = order(after[1]) end
    if not settled or bound < settled then settled = bound end
  end
  if state then
    for _, part in ipairs({ '', ':records', ':due', ':order', ':dead', ':dead:order' }) do keep(state .. part, ms) end
  end
end
-- What is not counted yet is removed by a later call.
if not is_exact then return { 0, 0, length } end

local bound = settled or ''
if age >= 0 then
  local old = order(text(math.max(now - age, 0)) .. '-0')
  if old > bound then bound = old end
end
local removed = 0
if bound == string.rep('9', 40) then
  removed = redis.call('XTRIM', LOG, 'MAXLEN', 0)
elseif bound ~= '' then
  removed = redis.call('XTRIM', LOG, 'MINID', id_of(bound))
end
if most >= 0 then removed = removed + redis.call('XTRIM', LOG, 'MAXLEN', most) end
local undelivered = 0
if removed > 0 then
  redis.call('HINCRBY', META, 'trimmed', removed)
  for _, it in ipairs(lags) do
    local skipped = math.max(it[2] - (length - removed), 0)
    undelivered = math.max(undelivered, skipped)
    if it[1] and skipped > 0 then redis.call('HINCRBY', it[1], 'skipped', skipped) end
  end
end
return { removed, undelivered, length - removed }
