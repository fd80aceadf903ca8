-- Writes a ledger, unless it has changed since it was read, or it is too late. Behind shown.lua, record_time.lua and
-- ledger.lua.
--
-- ARGV: 1 expected version, 2 microsecond after which it is too late, 3 text, 4 ttl_ms
-- Answer: whether it was written

local expected, not_after = whole(ARGV[1], 'expected'), whole(ARGV[2], 'not_after')
local ttl = whole(ARGV[4], 'ttl_ms')
local version = tonumber(kept[1] or 0)
if version ~= expected or now > not_after then return 0 end
-- The clock is the floor: a version is never used again, also when the ledger was lost in between.
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', math.max(version + 1, now)), 'text', ARGV[3])
note(ttl)
return 1
