-- Keeps a stream for as long as its consumers and its retention ask for.
local kept = tonumber(redis.call('HGET', META, 'keep')) or DAY
keep(LOG, kept)
keep(META, kept)
return 1
