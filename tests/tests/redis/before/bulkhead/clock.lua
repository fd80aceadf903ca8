-- The server's clock, in microseconds, and how those who wait are called up. Stands in front of common.lua.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function call_up(leases)
  -- All is written: without the right to publish, who waits asks by itself.
  redis.pcall('PUBLISH', ARGV[1], cjson.encode(leases))
end
