-- Begins leases again; comes behind hold.lua.
local function extend(ids)
  local answers, claims, counted = {}, {}, {}
  local is_plain = lease and not sought
  for i, id in ipairs(ids) do
    if is_plain and mine[id] then
      answers[i], claims[#claims + 1] = 0, id
    else
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
  end
  local many = #claims
  if many == 0 then return answers end
  claims[many + 1] = 'JUSTID'
  local claimed = redis.call('XCLAIM', LOG, group, consumer, 0, unpack(claims))
  if #claimed == many then return answers end
  -- Redis 7 drops what was removed from the stream; the consumer holds it all the same.
  local is_claimed = {}
  for _, id in ipairs(claimed) do is_claimed[id] = true end
  for i = 1, many do
    local id = claims[i]
    if not is_claimed[id] then
      begin_step()
      put(order(id), { FORMAT, consumer, now + lease, lease, counted[id] or mine[id], {}, false })
      count_held(consumer, 1)
      released(id)
    end
  end
  return answers
end
