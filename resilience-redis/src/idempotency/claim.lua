-- ARGV: 1 channel, 2 owner, 3 fingerprint, 4 packed doubles: lease, retention, takeover (0 never, 1 ended, 2 any)
-- Answer: a byte and three doubles, alone or with what is quoted: 0 new or 1 mine, fence, attempt, previous, "checkpoint"
-- | 2 busy, remaining | 3 done, age, fence, "outcome" | 4 mismatch | 5 unknown, fence, attempt, age
local asker, about = ARGV[2], ARGV[3]
local for_ms, keep_ms, takeover = struct.unpack('<ddd', ARGV[4])
if asker == '' or not (for_ms >= 1 and for_ms <= keep_ms and keep_ms <= 1000000000000
    and for_ms % 1 + keep_ms % 1 == 0 and (takeover == 0 or takeover == 1 or takeover == 2)) then
  refuse('a claim that makes no sense')
end

local how = 0
if known then
  if fingerprint ~= about then return struct.pack('<Bddd', 4, 0, 0, 0) end
  local age = math.floor(math.max(now - since, 0) / 1000)
  if phase == 2 then return { struct.pack('<Bddd', 3, age, fence, 0), call('HGET', key, 'outcome') } end
  if phase == 1 and owner == asker then
    how = 1
  elseif phase == 1 and till > now then
    -- A clock that has stepped back does not make a lease longer than it was.
    local longest = now + lease * 1000
    if till > longest then
      till = longest
      save()
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
  save()
else
  phase, attempt, since, retention, expires = 1, math.min(attempt + 1, 4294967295), now, keep_ms, now + keep_ms * 1000
  fence = math.max(fence + 1, now)
  save('owner', asker, 'fingerprint', about)
end
local granted = struct.pack('<Bddd', how, fence, attempt, previous)
if left == 0 then return granted end
return { granted, call('HGET', key, 'checkpoint') }
