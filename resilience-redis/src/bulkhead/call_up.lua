-- How those who wait are called up. Stands in front of common.lua.
local function call_up(leases)
  -- All is written: without the right to publish, who waits asks by itself.
  redis.pcall('PUBLISH', ARGV[1], cjson.encode(leases))
end
