-- Writes a ledger, unless it has changed since it was read, or it is too late.
--
-- KEYS: 1 ledger (hash: version, text), 2 demand, which is left alone
-- ARGV: 1 expected version, 2 microsecond after which it is too late, 3 text, 4 ttl_ms
-- Answer: whether it was written

local function whole(value, name)
  local n = tonumber(value)
  if not n or n ~= math.floor(n) or n < 0 or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number below 2^53: ' .. tostring(value)))
  end
  return n
end

local expected, not_after = whole(ARGV[1], 'expected'), whole(ARGV[2], 'not_after')
local ttl = whole(ARGV[4], 'ttl_ms')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if version ~= expected or now > not_after then return 0 end
-- The clock is the floor: a version is never used again, also when the ledger was lost in between.
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', math.max(version + 1, now)), 'text', ARGV[3])
if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
return 1
