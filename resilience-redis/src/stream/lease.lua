-- Begins leases again; comes behind hold.lua.
local function extend(ids)
  local answers, claims, counted = {}, {}, {}
  for i, id in ipairs(ids) do
    local how, deliveries, record, at = hold(id)
    answers[i] = how
    if how == 0 and lease then
      if record then
        begin_step()
        record[3], record[4] = now + lease, lease
        put(at, record)
      else
        claims[#claims + 1] = id
        counted[id] = deliveries
      end
    end
  end
  if #claims > 0 then
    claims[#claims + 1] = 'JUSTID'
    for _, id in ipairs(redis.call('XCLAIM', LOG, group, consumer, 0, unpack(claims))) do counted[id] = nil end
    -- Redis 7 drops what was removed from the stream; the consumer holds it all the same.
    for id, deliveries in pairs(counted) do
      begin_step()
      put(order(id), { FORMAT, consumer, now + lease, lease, deliveries, {}, false })
      count_held(consumer, 1)
      released(id)
    end
  end
  return answers
end
