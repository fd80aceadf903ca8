-- The ledger of one region, and what its instances would use. Shows it; with an instance, notes its demand before. Behind
-- shown.lua, record_time.lua and ledger.lua.
--
-- ARGV: none, or 1 instance, 2 demand, 3 ttl_ms
-- Answer: microseconds, version, text, demand of all

local instance, demand, ttl = ARGV[1]
if instance then demand, ttl = whole(ARGV[2], 'demand'), whole(ARGV[3], 'ttl_ms') end

local told = redis.call('HGETALL', KEYS[2])
local all = 0
for i = 1, #told, 2 do
  local value, till = string.match(told[i + 1], '^(%d+):(%d+)$')
  local is_over = not value or tonumber(till) <= now
  if instance and is_over then redis.call('HDEL', KEYS[2], told[i]) end
  if not is_over and told[i] ~= instance then all = all + tonumber(value) end
end
if instance then
  redis.call('HSET', KEYS[2], instance, string.format('%.0f:%.0f', demand, now + ttl * 1000))
  if redis.call('PTTL', KEYS[2]) < ttl then redis.call('PEXPIRE', KEYS[2], ttl) end
  all = all + demand
  note(ttl)
elseif lead ~= noted_lead then
  redis.pcall('HSET', KEYS[1], 'at', string.format('%.0f', now), 'lead', string.format('%.0f', lead))
end
return { string.format('%.0f', now), kept[1] or '0', kept[2] or '', string.format('%.0f', all) }
