-- Removes a group.
-- Answer: whether it existed
local existed = summary()
redis.call('DEL', unpack(KEYS, 4, 9))
redis.call('HDEL', META, 'g:' .. group, 'b:' .. group)
if not existed then return 0 end
redis.call('XGROUP', 'DESTROY', LOG, group)
-- Its records of effects are found no more.
redis.call('HSET', META, 'r:' .. group, text(micros))
keep(META, DAY)
return 1
