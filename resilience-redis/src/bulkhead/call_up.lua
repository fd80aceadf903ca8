-- How those who wait are called up. Stands in front of common.lua.
local function call_up(leases)
  -- The format of the message. The version before takes it for a lease that none of its calls waits for.
  leases[#leases + 1] = '#1'
  -- All is written: without the right to publish, who waits asks by itself.
  redis.pcall('PUBLISH', ARGV[1], cjson.encode(leases))
end
