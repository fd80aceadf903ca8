-- A look at a record that is held or at rest, at a clock that may have been set back: nothing then lasts longer than it would
-- have. To that end the head keeps, at most every 100 ms, what is left of a lease. (A full server cannot write that; a later look
-- does.)
local function look()
  local is_back = since > now
  local rest = phase == 1 and till - now or 0
  if rest > lease * 1000 then is_back, rest = true, lease * 1000 end
  local rest_ms = phase == 1 and math.ceil(rest / 1000) or lease
  if not is_back and lease - rest_ms < 100 then return end
  if phase == 1 then till = now + rest end
  if since > now then since = now end
  lease = rest_ms
  redis.pcall('SETRANGE', key, '16', struct.pack('<ddd', since, till, lease))
  if is_back then
    local longest = math.max(phase == 1 and lease or 0, retention)
    if redis.call('PTTL', key) > longest then redis.call('PEXPIRE', key, longest) end
  end
end
