-- ARGV: 1 channel (unused), 2 how many entries at most
-- Answer: the time of the record, and the newest entries of the log, newest first
local count = number(ARGV[2], 'count')
if count == 0 then return { tostring(now), {} } end
return { string.format('%.0f', now), redis.call('XREVRANGE', KEYS[8], '+', '-', 'COUNT', count) }
