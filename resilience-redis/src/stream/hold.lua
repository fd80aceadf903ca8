-- Who holds messages; comes behind group.lua.

-- Positions of the consumer in the PEL, with their deliveries. One range for many: a check of the owner for each would cost more
-- than the rest of an acknowledgement.
local mine, sought = {}, false
local function find(ids)
  sought = redis.call('HEXISTS', STATE, 'sought') == 1
  if #ids <= 4 then return end
  local first, last = order(ids[1]), order(ids[1])
  for _, id in ipairs(ids) do
    local at = order(id)
    if at < first then first = at end
    if at > last then last = at end
  end
  for _, entry in ipairs(redis.call('XPENDING', LOG, group, id_of(first), id_of(last), 1000, consumer)) do
    mine[entry[1]] = entry[4]
  end
end

-- Whether the consumer holds a message (0), another one does (1), or none (2); its deliveries; its record, unless it is in the PEL.
local function hold(id)
  local deliveries = mine[id]
  if not deliveries then
    local entry = in_pel(id)
    if entry and entry[2] ~= consumer then return 1 end
    deliveries = entry and entry[4]
  end
  local at = order(id)
  if deliveries then
    if sought then drop(at) end
    return 0, deliveries, nil, at
  end
  local record = get(at)
  if not record or record[2] == '' then return 2 end
  if record[2] ~= consumer then return 1 end
  return 0, record[5], record, at
end

-- The message is no longer in the PEL.
local function released(id) mine[id] = nil end
