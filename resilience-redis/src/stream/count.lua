-- How many messages of the stream a group was not given yet; comes behind header.lua. Redis' own count is wrong after trims,
-- and 6.2 has none. Here, the messages up to a point that moves on are counted once, so that a count costs what was delivered
-- since the last one: the number of a point is that of all messages so far, less those behind the point.
--
-- Messages that are removed before the point change nothing in that, whatever removed them: Redis 7 tells how many there were so far, of
-- which those that are left were not removed. One that is removed behind the point does: `XDEL` leaves a trace of the highest, and
-- then all is counted again. Redis 6.2 tells neither: there, trims of others are found by another first message, if there was no trim of
-- ours since, and what others delete elsewhere is not found.
local length, added, removed = 0, 0, 0
local first, last, highest
-- What a count holds for: another value, and messages may have been removed.
local version
local function measure()
  local info = named(redis.call('XINFO', 'STREAM', LOG))
  length, added = info.length, info['entries-added']
  first, last = info['first-entry'], info['last-entry']
  first, last = first and first[1], last and last[1]
  if added then
    removed, highest = added - length, order(info['max-deleted-entry-id'])
    version = text(removed)
  else
    removed = tonumber(redis.call('HGET', META, 'trimmed') or 0)
    added = length + removed
    version = text(removed) .. ':' .. (first or '')
  end
end

-- Whether a count up to a point was made before messages behind it were removed.
local function is_outdated(counted, point)
  if counted == version then return false end
  if highest then return highest > order(point) or string.find(counted, ':', 1, true) end
  local before_trim = string.match(counted, '^%d+:')
  return not before_trim or before_trim == text(removed) .. ':'
end

-- The number, and whether it is exact: after very many deliveries it takes several calls.
local function lag(cursor, state)
  if length == 0 then return 0, true end
  local at, counted, of = string.match(state and redis.call('HGET', state, 'count') or '', '^(%S+) (%d+) (%S+)$')
  local after = order(cursor)
  local function note(id, number)
    if state and (id ~= at or tonumber(counted) ~= number or of ~= version) then
      -- A server that is out of memory may refuse: then it is counted again.
      redis.pcall('HSET', state, 'count', id .. ' ' .. text(number) .. ' ' .. version)
    end
  end
  if after >= order(last) then
    note(cursor, added)
    return 0, true
  end
  if after < order(first) then return length, true end
  local point, number = at, tonumber(counted)
  if not point or order(point) > after or order(point) < order(first) or is_outdated(of, point) then
    point, number = before(first), removed
  end
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
  return math.max(added - number, 0), point == cursor
end

-- The first message that a group holds or that waits.
local function first_unsettled(group)
  local held, order_key = redis.call('XPENDING', LOG, group)[2], key_of(group, ':order')
  local waiting = order_key and redis.call('ZRANGE', order_key, 0, 0)[1]
  if waiting and (not held or waiting < order(held)) then return id_of(waiting) end
  return held
end
