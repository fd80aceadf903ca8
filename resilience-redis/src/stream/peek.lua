-- Messages of the stream, in order.
-- ARGV: 1 position of the first one, 2 maximum number
-- Answer: entries
order(ARGV[1])
local max = whole(ARGV[2], 'a number of messages', 0, 1000)
if max == 0 then return {} end
return redis.call('XRANGE', LOG, ARGV[1], '+', 'COUNT', max)
