-- The ledger of one region, and what its instances would use. Shows it; with an instance, notes its demand before.
--
-- KEYS: 1 ledger (hash: version, text), 2 demand (hash: instance, demand:until)
-- ARGV: none, or 1 instance, 2 demand, 3 ttl_ms
-- Answer: microseconds, version, text, demand of all

local function whole(value, name)
  local n = tonumber(value)
  if not n or n ~= math.floor(n) or n < 0 or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number below 2^53: ' .. tostring(value)))
  end
  return n
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local instance, demand, ttl = ARGV[1]
if instance then demand, ttl = whole(ARGV[2], 'demand'), whole(ARGV[3], 'ttl_ms') end

local ledger = redis.call('HMGET', KEYS[1], 'version', 'text')
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
end
return { string.format('%.0f', now), ledger[1] or '0', ledger[2] or '', string.format('%.0f', all) }
