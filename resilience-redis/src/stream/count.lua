-- How many messages of the stream a group was not given yet; comes behind header.lua. Redis' own count is wrong after trims,
-- and 6.2 has none. Here, the messages up to a point that moves on are counted once, so that a count costs what was delivered
-- since the last one.
local length = 0
local first, last
local trimmed = 0
local function measure()
  length = redis.call('XLEN', LOG)
  trimmed = tonumber(redis.call('HGET', META, 'trimmed') or 0)
  first, last = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1], redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
  first, last = first and first[1], last and last[1]
end

-- The number, and whether it is exact: after very many deliveries it takes several calls.
local function lag(cursor, state)
  if length == 0 then return 0, true end
  local at, counted = string.match(state and redis.call('HGET', state, 'count') or '', '^(%S+) (%d+)$')
  local after = order(cursor)
  local function note(id, number)
    if state and (id ~= at or tonumber(counted) ~= number) then
      -- A server that is out of memory may refuse: then it is counted again.
      redis.pcall('HSET', state, 'count', id .. ' ' .. text(number))
    end
  end
  if after >= order(last) then
    note(cursor, length + trimmed)
    return 0, true
  end
  if after < order(first) then return length, true end
  local point, number = at, tonumber(counted)
  if not point or order(point) > after or order(point) < order(first) then point, number = before(first), trimmed end
  for _ = 1, 200 do
    local page = redis.call('XRANGE', LOG, '(' .. point, cursor, 'COUNT', 100)
    number = number + #page
    if #page < 100 then
      point = cursor
      break
    end
    point = page[100][1]
  end
  note(point, number)
  return math.max(length + trimmed - number, 0), point == cursor
end

-- The first message that a group holds or that waits.
local function first_unsettled(group)
  local held, order_key = redis.call('XPENDING', LOG, group)[2], key_of(group, ':order')
  local waiting = order_key and redis.call('ZRANGE', order_key, 0, 0)[1]
  if waiting and (not held or waiting < order(held)) then return id_of(waiting) end
  return held
end
