-- Comes last in the scripts that write more than a claim or an outcome. See holder.lua for what it writes.
--
-- Subscribers have said so with a claim, and claim again once notified. Those that could not claim again by themselves.
local told = news and heard == 1
if told then heard = 0 end
local head = struct.pack('<BBBBI4dddddBBB', 249, phase, previous, left, attempt, fence, since, till, lease, retention,
  about_size, owner_size, heard)
-- A server that is out of memory refuses what would take more of it, but not in the middle of a script that has written:
-- beginning with the expiry, whatever was granted can be ended even then, and only new keys are refused.
if not tail then
  if keep then redis.call('PEXPIRE', key, keep) end
  redis.call('SETRANGE', key, '0', head)
else
  local record = head .. tail
  if redis.pcall('SET', key, record, 'PX', keep).err then
    if read then redis.call('PEXPIRE', key, keep) end
    redis.call('SET', key, record, 'PX', keep)
  end
end
-- The format of the message, and the phase. Errors are ignored: the ACL may not allow PUBLISH.
if told then redis.pcall('PUBLISH', string.sub(key, 1, -8) .. ':news', '1:' .. news) end
return answer
