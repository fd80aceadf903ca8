-- Stands last in the scripts that write more than a claim. See holder.lua for what it writes.
--
-- A server that is out of memory refuses what would take more of it, but not in the middle of a script that has written:
-- beginning with the expiry, whatever was granted can be ended even then, and only new keys are refused.
keep = keep or math.ceil((expires - now) / 1000)
if not whole then
  redis.call('PEXPIRE', key, keep)
elseif redis.pcall('SET', key, whole, 'PX', keep).err then
  if known then redis.call('PEXPIRE', key, keep) end
  redis.call('SET', key, whole, 'PX', keep)
end
-- Over the head that is there, because a copy of all that is behind it would cost more.
redis.call('SETRANGE', key, '0', struct.pack('<BBBBI4ddddddBB', 249, phase, previous, left, attempt, fence, since, till,
  lease, retention, expires, about_size, owner_size))
-- Without the right to publish, whoever waits looks again by themselves.
if news then redis.pcall('PUBLISH', ARGV[3], news) end
return answer
