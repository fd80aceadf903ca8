-- The holders of messages; comes behind group.lua.
-- ARGV: 3 the lowest and 4 the highest of the positions that the step is about
local lease, sought

-- Positions of the consumer in the PEL, with their deliveries. One range for many: a check of the owner for each would cost more
-- than the rest of an acknowledgement. Nothing: the group does not exist.
local mine
local function find()
  order(ARGV[3])
  order(ARGV[4])
  local held = try('NOGROUP', 'XPENDING', LOG, group, ARGV[3], ARGV[4], 1000, consumer)
  if not held then return nil end
  mine = {}
  for _, entry in ipairs(held) do mine[entry[1]] = entry[4] end
  local state = redis.call('HMGET', STATE, 'c:' .. consumer, 'sought', 'format')
  check_format(state[3])
  lease, sought = tonumber(state[1]), state[2]
  return mine
end

-- Whether the consumer holds a message (0), another one does (1), or none (2); its deliveries; its record, unless it is in the
-- PEL, and the place of that.
local function hold(id)
  local deliveries = mine[id]
  if not deliveries then
    local entry = in_pel(id)
    if entry and entry[2] ~= consumer then return 1 end
    deliveries = entry and entry[4]
  end
  if deliveries then
    if sought then
      begin_step()
      drop(order(id))
    end
    return 0, deliveries
  end
  local at = order(id)
  local record = get(at)
  if not record or record[2] == '' then return 2 end
  if record[2] ~= consumer then return 1 end
  return 0, record[5], record, at
end

-- The message is no longer in the PEL.
local function released(id) mine[id] = nil end
