-- Delivers messages that wait for another delivery.
-- ARGV: 3 maximum number of messages
-- Answer: nothing: the consumer has to join; or incarnation, milliseconds until the next one is due (-1: there is none), skipped
-- messages, the pause or 0, and the deliveries: position, deliveries, fields or 0
local max = math.min(whole(ARGV[3], 'a number of messages', 0, 1000), 100)
local groups, incarnation = look()
local info = groups and groups[group]
local lease = tonumber(redis.call('HGET', STATE, 'c:' .. consumer) or '')
local sought
if not info or not incarnation or not lease then return false end
redis.call('ZCARD', DELAYED)
begin_step()
sought = redis.call('HEXISTS', STATE, 'sought') == 1
keep(META, kept)

-- Delayed messages that are due.
local ripe = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 100)
for _, member in ipairs(ripe) do
  redis.call('XADD', LOG, '*', unpack(cmsgpack.unpack(string.sub(member, 17))))
end
if #ripe > 0 then
  redis.call('ZREM', DELAYED, unpack(ripe))
  keep(LOG, kept)
end

-- The consumers that hold something in the PEL, and their leases.
local holders = {}
for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', LOG, group)) do
  local it = named(list)
  local of = tonumber(redis.call('HGET', STATE, 'c:' .. it.name) or '') or 30000
  if it.pending > 0 then
    holders[#holders + 1] = { it.name, of }
  elseif it.idle > DAY and redis.call('HEXISTS', STATE, 'h:' .. it.name) == 0 then
    -- It died without leaving, unless it has joined again and again.
    local joined = tonumber(redis.call('HGET', STATE, 's:' .. it.name) or 0)
    if now - joined > DAY then
      redis.call('XGROUP', 'DELCONSUMER', LOG, group, it.name)
      redis.call('HDEL', STATE, 'c:' .. it.name, 's:' .. it.name)
    end
  end
end

-- A clock that was set back: nothing lasts longer from now on than it was to last.
local function set_back()
  for _, holder in ipairs(holders) do
    local from = '-'
    repeat
      local page = redis.call('XPENDING', LOG, group, from, '+', 500, holder[1])
      local command = { 'XCLAIM', LOG, group, holder[1], 0 }
      for _, entry in ipairs(page) do
        -- What was removed from the stream would be dropped.
        if message(entry[1]) then command[#command + 1] = entry[1] end
      end
      if #command > 5 then
        command[#command + 1] = 'JUSTID'
        redis.call(unpack(command))
      end
      from = page[500] and '(' .. page[500][1]
    until not from
  end
  for _, at in ipairs(redis.call('ZRANGE', DUE, 0, -1)) do
    local record = get(at)
    if record and record[3] > now + record[4] then
      record[3] = now + record[4]
      put(at, record)
    end
  end
end
local last = tonumber(redis.call('HGET', STATE, 'at') or 0)
if now + 1000 < last then set_back() end
redis.call('HSET', STATE, 'at', now)

local pause = redis.call('HGET', STATE, 'pause')
pause = pause and cmsgpack.unpack(pause)
if pause and pause[2] >= 0 and pause[2] <= now then
  redis.call('HDEL', STATE, 'pause')
  pause = nil
end

-- What is due: when, position in order, its consumer and deliveries if it is in the PEL.
local due, deliveries = {}, {}
if max > 0 and not pause then
  local scored = redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'WITHSCORES', 'LIMIT', 0, max)
  for i = 1, #scored, 2 do due[#due + 1] = { tonumber(scored[i + 1]), scored[i] } end
  -- In the PEL they are in the order of positions: that of time is found among the first many of each consumer.
  for _, holder in ipairs(holders) do
    for _, it in ipairs(redis.call('XPENDING', LOG, group, 'IDLE', holder[2], '-', '+', 200, holder[1])) do
      due[#due + 1] = { now - it[3] + holder[2], order(it[1]), it[2], it[4] }
    end
  end
  table.sort(due, function(a, b)
    if a[1] ~= b[1] then return a[1] < b[1] end
    return a[2] < b[2]
  end)
end

local function deliver(it)
  local at, id = it[2], id_of(it[2])
  local record
  if it[3] then
    redis.call('XACK', LOG, group, id)
    if sought then drop(at) end
    record = { FORMAT, it[3], 0, 0, it[4], {}, false }
  else
    record = get(at)
    if not record or (sought and in_pel(id)) then return drop(at) end
    count_held(record[2], -1)
  end
  if record[2] ~= '' then fail(record[6], record[5], record[2], false) end
  record[2], record[3], record[4], record[5] = consumer, now + lease, lease, record[5] + 1
  put(at, record)
  count_held(consumer, 1)
  deliveries[#deliveries + 1] = { id, record[5], record[7] or message(id) or 0 }
end
for i = 1, math.min(max, #due) do deliver(due[i]) end

-- The bookmark: everything up to it is settled.
local function first_unsettled()
  local held, first = summary()[2], redis.call('ZRANGE', ORDER, 0, 0)[1]
  if not held then return first and id_of(first) end
  if first and first < order(held) then return id_of(first) end
  return held
end
local unsettled, bookmark = first_unsettled(), info['last-delivered-id']
if unsettled and order(unsettled) <= order(bookmark) then bookmark = before(unsettled) end
redis.call('HSET', META, 'b:' .. group, incarnation .. ' ' .. bookmark)

-- When the next one is due. The oldest in the PEL of a consumer is nearly always its first; extended leases change that.
local next
local function at_latest(time) if time and (not next or time < next) then next = time end end
at_latest(tonumber(redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2]))
at_latest(tonumber(redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')[2]))
for _, holder in ipairs(holders) do
  local idle
  for _ = 1, 8 do
    local older = redis.call('XPENDING', LOG, group, 'IDLE', (idle or -1) + 1, '-', '+', 1, holder[1])[1]
    if not older then break end
    idle = older[3]
  end
  at_latest(idle and now - idle + holder[2])
end
seen()
keep_group()
if pause then pause = { pause[2] < 0 and -1 or pause[2] - now, pause[3], pause[4] } end
return {
  tonumber(incarnation),
  next and math.max(next - now, 0) or -1,
  tonumber(redis.call('HGET', STATE, 'skipped') or 0),
  pause or 0,
  deliveries,
}
