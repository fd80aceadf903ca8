-- Comes first in the scripts that need only the holder of the record: an outcome or a checkpoint, however large, is neither
-- read nor written. 307 bytes is the longest head with what names its holder.
local read = redis.call('GETRANGE', KEYS[1], '0', '306')
if read == '' and redis.call('EXISTS', KEYS[1]) == 0 then read = false end
