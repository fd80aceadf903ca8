local alone = kind == 4 and token == own_token
-- A server that is out of memory stores nothing: an invalidation is left.
if alone and value and not redis.pcall('SET', key, value, 'PX', keep_ms).err then
  redis.call('SETRANGE', key, '20', struct.pack('<I6', now))
  return 1
end
if alone then kind = 0 end
invalidate()
return 0
