-- A look at a record that is held or at rest, at a clock that may have been set back: nothing then lasts longer than it would
-- have. To that end the head keeps, at most every 100 ms, what is left of a lease. (A full server cannot write that; a later look
-- does.)
local function clamp()
  local held, is_back = phase == 1 and till > now, since > now
  local left_ms = lease
  if held then
    local longest = now + lease * 1000
    if till > longest then till, is_back = longest, true end
    left_ms = math.ceil((till - now) / 1000)
  end
  if not is_back and lease - left_ms < 100 then return end
  if since > now then since = now end
  lease = left_ms
  redis.pcall('SETRANGE', key, '16', struct.pack('<ddd', since, till, lease))
  if is_back then
    local longest = held and math.max(lease, retention) or retention
    if redis.call('PTTL', key) > longest then redis.call('PEXPIRE', key, longest) end
  end
end
