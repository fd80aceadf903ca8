-- Comes behind time.lua in the scripts that store a value.
local function check(value)
  local mark, _, sort, _, _, of_whom, _, for_ms, keep_ms = struct.unpack('<BBBBc8c8I6I6I6', value)
  if mark ~= 250 or sort < 1 or sort > 2 or of_whom == NONE or keep_ms < 1 or for_ms > keep_ms or keep_ms > MOST then
    error(redis.error_reply('ERR a value that makes no sense: ' .. key))
  end
  return keep_ms
end

-- Stores a value. Its moment is written behind it, so that no copy is made of it here. A server that is out of memory refuses
-- what takes more of it, but not in the middle of a script that has written: there, what is known is replaced, and new keys are
-- refused.
local function store(value, keep_ms)
  if redis.pcall('SET', key, value, 'PX', keep_ms).err then
    if is_there then redis.call('DEL', key) end
    redis.call('SET', key, value, 'PX', keep_ms)
  end
  redis.call('SETRANGE', key, '20', struct.pack('<I6', now))
end
