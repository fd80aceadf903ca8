-- Makes a consumer unknown to a group, if it holds nothing.
-- Answer: whether it is unknown
if not summary() then return 1 end
if #redis.call('XPENDING', LOG, group, '-', '+', 1, consumer) > 0 then return 0 end
if redis.call('HEXISTS', STATE, 'h:' .. consumer) == 1 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', LOG, group, consumer)
redis.call('HDEL', STATE, 'c:' .. consumer, 's:' .. consumer)
return 1
