-- ARGV: 1 channel, 2 instance, 3 live_ms, 4 lease_ms, then for each lease: id, cost, fence
-- Answer: the view, then for each lease whether it is held
local instance, alive, lasting = ARGV[2], span(ARGV[3], 'live_ms', 1), span(ARGV[4], 'lease_ms', 1)
for i = 5, #ARGV, 3 do
  whole(ARGV[i + 1], 'cost', 0)
  whole(ARGV[i + 2], 'fence', 0)
end
redis.call('ZCARD', KEYS[6])
sweep()
begin()
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now)
redis.call('ZADD', KEYS[6], now + alive, instance)
keep(KEYS[6], alive)

local renewed = {}
for i = 5, #ARGV, 3 do
  local id, cost, claimed = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local _, under = held(id)
  local is_held = 1
  if under == claimed then
    redis.call('ZADD', KEYS[2], now + lasting, id)
  elseif not under and claimed <= born then
    take(id, cost, claimed, lasting)
  else
    is_held = 0
  end
  renewed[#renewed + 1] = is_held
end
save(lasting)
return done(view(renewed))
