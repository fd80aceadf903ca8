local key = KEYS[1]
local text = string.format('%.0f:%.0f', math.max(now, (read(key) or 0) + 1), now)
ttl = math.max(ttl, redis.call('PTTL', key))
if redis.pcall('SET', key, text, 'PX', ttl).err then
  -- A server that is out of memory.
  redis.call('DEL', key)
  redis.call('SET', key, text, 'PX', ttl)
end
return 1
