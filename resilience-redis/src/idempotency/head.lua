-- Stands in front of common.lua in the scripts that need no more than who holds the record: however large an outcome or
-- a checkpoint is, it is neither read nor written again. 314 bytes is the longest head.
local read = redis.call('GETRANGE', KEYS[1], '0', '313')
if read == '' and redis.call('EXISTS', KEYS[1]) == 0 then read = false end
