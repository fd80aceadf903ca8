-- ARGV: 1 channel, 2 lease, 3 cost, 4 limit, 5 lease_ms, 6 ticket_ms, then the returns
-- Answer: 1 granted, 0 full, -1 impossible; fence; milliseconds until the next lease ends
local id, cost, limit = ARGV[2], whole(ARGV[3], 'cost', 0), whole(ARGV[4], 'limit', 0)
local lasting, ticket = span(ARGV[5], 'lease_ms', 1), span(ARGV[6], 'ticket_ms', 0)
check_returns(7)
sweep()
take_back(7)

-- What was swept before is gone from here.
local _, under = held(id)
if under then
  redis.call('ZADD', KEYS[2], now + lasting, id)
  save(lasting)
  return done({ 1, text(under), 0 })
end
if cost > limit then
  if freed then save(lasting) end
  return done({ -1, '0', 0 })
end

local at = position(id)
local ahead, taken = (at or #queue + 1) - 1, in_flight
for i = 1, ahead do taken = taken + queue[i].cost end
if taken + cost <= limit then
  if at then
    redis.call('ZREM', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
    table.remove(queue, at)
  end
  begin()
  fence = math.max(fence, now) + 1
  take(id, cost, fence, lasting)
  save(lasting)
  return done({ 1, text(fence), 0 })
end

local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local soonest = first and tonumber(first)
for i = 1, ahead do
  if not soonest or queue[i].till < soonest then soonest = queue[i].till end
end
if ticket > 0 then
  local mine = { id = id, cost = cost, limit = limit, till = now + ticket }
  if at then
    queue[at] = mine
  else
    local last = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
    redis.call('ZADD', KEYS[4], math.max(tonumber(last or 0) + 1, now), id)
    queue[#queue + 1] = mine
  end
  redis.call('HSET', KEYS[5], id, text(cost) .. ':' .. text(limit) .. ':' .. text(mine.till))
  keep(KEYS[4], ticket)
  keep(KEYS[5], ticket)
  if born > 0 then keep(KEYS[1], ticket) end
end
if freed then save(lasting) end
return done({ 0, '0', soonest and math.ceil((soonest - now) / 1000) or 0 })
