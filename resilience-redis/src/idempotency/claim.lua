-- ARGV: 1 packed: lease, retention (doubles), takeover (0 never, 1 ended, 2 any), bytes of the fingerprint; 2 fingerprint
-- and owner; 3 retention once more, as text
-- Answer: a byte and three doubles, alone or with what is quoted: 0 new or 1 mine, fence, attempt, previous, "checkpoint"
-- | 2 busy, remaining | 3 done, age, fence, bytes before the outcome, and the record in the same reply | 4 mismatch
-- | 5 unknown, fence, attempt, age
local who, keep = ARGV[2], ARGV[3]
local for_ms, keep_ms, takeover, size = struct.unpack('<ddBB', ARGV[1])
if not (size < #who and #who <= size + 128 and size <= 128 and for_ms >= 1 and for_ms <= keep_ms
    and keep_ms <= 1000000000000 and for_ms % 1 + keep_ms % 1 == 0 and takeover <= 2 and tonumber(keep) == keep_ms) then
  error(redis.error_reply('ERR a claim that makes no sense: ' .. key))
end

local how = 0
if known then
  if size ~= about_size or string.sub(read, 59, 58 + size) ~= string.sub(who, 1, size) then
    return struct.pack('<Bddd', 4, 0, 0, 0)
  end
  local age = now - since
  if age < 0 then age = 0 end
  age = (age - age % 1000) / 1000
  if phase == 2 then return struct.pack('<Bddd', 3, age, fence, behind) .. read end
  if phase == 1 and string.sub(read, 59, behind) == who then
    how = 1
  elseif phase == 1 and till > now then
    -- A clock that has stepped back does not make a lease longer than it was.
    local longest = now + lease * 1000
    if till > longest then
      till = longest
      -- A server that is full cannot write it down now; somebody will ask again.
      redis.pcall('SETRANGE', key, '24', struct.pack('<d', till))
    end
    return struct.pack('<Bddd', 2, math.ceil((till - now) / 1000), 0, 0)
  elseif (phase ~= 0 or previous == 2) and (takeover == 0 or (takeover == 1 and (phase == 3 or previous == 3))) then
    return struct.pack('<Bddd', 5, fence, attempt, age)
  elseif phase == 0 then
    -- A release says nothing of the attempt before the one that was released.
    if previous ~= 2 then previous = 1 end
  elseif phase == 3 or previous == 3 then
    previous = 3
  else
    previous = 2
  end
end

lease, till = for_ms, now + for_ms * 1000
if how == 1 then
  expires = now + math.max(lease, retention) * 1000
else
  phase, since, retention, expires, fence = 1, now, keep_ms, now + keep_ms * 1000, fence + 1
  if fence < now then fence = now end
  if attempt < 4294967295 then attempt = attempt + 1 end
end
local head = struct.pack('<BBBBI4ddddddBB', 249, phase, previous, left, attempt, fence, since, till, lease, retention,
  expires, size, #who - size)
local granted = struct.pack('<Bddd', how, fence, attempt, previous)
if how == 1 then
  redis.call('PEXPIRE', key, math.ceil((expires - now) / 1000))
  redis.call('SETRANGE', key, '0', head)
  if left == 1 then return { granted, string.sub(read, behind + 1) } end
  return granted
end

local record, checkpoint = head .. who, nil
if left == 1 then
  checkpoint = string.sub(read, behind + 1)
  record = record .. checkpoint
end
-- See save.lua.
if redis.pcall('SET', key, record, 'PX', keep).err then
  if known then redis.call('PEXPIRE', key, keep) end
  redis.call('SET', key, record, 'PX', keep)
end
if checkpoint then return { granted, checkpoint } end
return granted
