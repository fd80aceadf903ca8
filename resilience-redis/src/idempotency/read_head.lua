-- Stands first in the scripts that need no more than who holds the record: however large an outcome or a checkpoint is, it
-- is neither read nor written again. 307 bytes is the longest head with what names its holder.
local read = redis.call('GETRANGE', KEYS[1], '0', '306')
if read == '' and redis.call('EXISTS', KEYS[1]) == 0 then read = false end
