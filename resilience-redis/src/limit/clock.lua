-- The server's clock, and keys that live until their bucket is full. Stands in front of decide.lua.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function keep(key, value, full_in)
  redis.call('SET', key, value, 'PX', math.ceil(full_in / 1000))
end
