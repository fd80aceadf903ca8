-- Comes behind expire.lua in the scripts that leave a record without a value: a head, until a moment of the clock, or none at
-- all if that is over already. A server that is out of memory takes it too: an invalidation is never refused.
local function leave(sort, owner, at, span)
  if at <= now then
    if is_there then redis.call('DEL', key) end
    return
  end
  local record = struct.pack('<c2Bc41c8I6I6', asked, sort, string.sub(asked, 4, 44), owner, at, span)
  if redis.pcall('SET', key, record, 'PX', at - now).err then
    redis.call('DEL', key)
    redis.call('SET', key, record, 'PX', at - now)
  end
end

-- Removes the value. A writer does not know of the change behind this invalidation: what it writes is not stored.
local function invalidate()
  -- An earlier tombstone may last longer.
  if kind < 3 or left <= own_length then till, length = now + own_length, own_length end
  leave(kind < 4 and 3 or 5, NONE, till, length)
end
