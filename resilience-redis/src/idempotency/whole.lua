-- Stands in front of common.lua in the script that quotes what is recorded.
local read = redis.call('GET', KEYS[1])
