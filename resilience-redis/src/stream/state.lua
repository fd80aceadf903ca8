-- The state of a stream.
-- Answer: nothing: there is none; or length, delayed messages, first and last position or 0, incarnation, groups: name, cursor,
-- lag, held, waiting, dead, skipped, age of the oldest message that is not settled (-1: there is none), pause or 0, consumers:
-- name, held, lease, idle time
local groups, incarnation = look()
if not groups then return false end
measure()

local function oldest(name, cursor)
  local after = redis.call('XRANGE', LOG, '(' .. cursor, '+', 'COUNT', 1)[1]
  local unsettled = first_unsettled(name)
  if after and (not unsettled or order(after[1]) < order(unsettled)) then unsettled = after[1] end
  return unsettled and math.max(now - string.match(unsettled, '^%d+'), 0) or -1
end

local function state_of(name, it)
  local key = key_of(name, '')
  local state = key and named(redis.call('HGETALL', key)) or {}
  local consumers, recorded, idle, held = {}, 0, {}, {}
  for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', LOG, name)) do
    local known = named(list)
    idle[known.name], held[known.name] = known.idle, known.pending
    if known.pending > 0 and not state['c:' .. known.name] then state['c:' .. known.name] = 30000 end
  end
  for field, value in pairs(state) do
    local kind, who = string.sub(field, 1, 2), string.sub(field, 3)
    if kind == 'h:' then recorded = recorded + value end
    if kind == 'c:' then
      local since = math.min(idle[who] or MOST, now - (state['s:' .. who] or 0))
      consumers[#consumers + 1] =
        { who, (held[who] or 0) + (state['h:' .. who] or 0), tonumber(value), math.max(since, 0) }
    end
  end
  local pause = state.pause and cmsgpack.unpack(state.pause)
  if pause and pause[2] >= 0 and pause[2] <= now then pause = nil end
  if pause then pause = { pause[2] < 0 and -1 or pause[2] - now, pause[3], pause[4] } end
  local cursor = it['last-delivered-id']
  local records = key and redis.call('ZCARD', key .. ':order') or 0
  return {
    name,
    cursor,
    (lag(cursor, key)),
    it.pending + recorded,
    math.max(records - recorded, 0),
    key and redis.call('ZCARD', key .. ':dead:order') or 0,
    tonumber(state.skipped or 0),
    oldest(name, cursor),
    pause or 0,
    consumers,
  }
end

local all = {}
for name, it in pairs(groups) do all[#all + 1] = state_of(name, it) end
return { length, redis.call('ZCARD', DELAYED), first or 0, last or 0, tonumber(incarnation or 0), all }
