-- Follows claim_new.lua and clamp.lua in the script of claims: the key is known.
-- ARGV: 2 none, or a fence that this claim's is to be above
local _, manner, for_ms, keep_ms, size, owner, _, who_at = struct.unpack('<ddddBBB', asked)
local who = string.sub(asked, who_at)
local takeover, listens = manner % 4, manner >= 4
if #who ~= size + owner or owner < 1 or owner > 128 or size > 128 or not (manner <= 6 and takeover <= 2 and manner % 1 == 0)
    or not (for_ms >= 1 and for_ms <= keep_ms and keep_ms <= 1000000000000 and for_ms % 1 + keep_ms % 1 == 0) then
  error(redis.error_reply('ERR a claim that makes no sense: ' .. key))
end

local how = 0
if (size ~= about_size or string.sub(read, 52, 51 + size) ~= string.sub(who, 1, size))
    -- A key that was given back, with neither a doubt nor a checkpoint, is free for other work.
    and not (phase == 0 and previous < 2 and left == 0) then
  return struct.pack('<Bddd', 4, 0, 0, 0)
end
if phase == 1 and string.sub(read, 52, behind) == who then
  how = 1
elseif phase == 1 and till > now then
  clamp()
  -- A full server cannot write this now: subscribers claim again by themselves.
  if listens and heard == 0 then redis.pcall('SETRANGE', key, '50', '\1') end
  return struct.pack('<Bddd', 2, math.ceil((till - now) / 1000), 0, 0)
elseif (phase ~= 0 or previous == 2) and (takeover == 0 or (takeover == 1 and (phase == 3 or previous == 3))) then
  clamp()
  return struct.pack('<Bddd', 5, fence, attempt, math.floor(math.max(now - since, 0) / 1000))
elseif phase == 0 then
  -- A release says nothing about the attempt before the released one.
  if previous ~= 2 then previous = 1 end
elseif phase == 3 or previous == 3 then
  previous = 3
else
  previous = 2
end

lease, till = for_ms, now + for_ms * 1000
if how == 0 then
  phase, since, retention, fence = 1, now, keep_ms, fence + 1
  if fence < now then fence = now end
  if attempt < 4294967295 then attempt = attempt + 1 end
end
-- Given by a claimant that knows of a higher fence than this claim was granted.
local floor = tonumber(ARGV[2])
if floor and fence <= floor then fence, since = floor + 1, now end
local head = struct.pack('<BBBBI4dddddBBB', 249, phase, previous, left, attempt, fence, since, till, lease, retention,
  size, owner, heard)
if how == 1 then
  redis.call('PEXPIRE', key, math.max(lease, retention))
  redis.call('SETRANGE', key, '0', head)
else
  local record = head .. who
  if left == 1 then record = record .. string.sub(read, behind + 1) end
  -- See save.lua.
  if redis.pcall('SET', key, record, 'PX', keep_ms).err then
    redis.call('PEXPIRE', key, keep_ms)
    redis.call('SET', key, record, 'PX', keep_ms)
  end
end
local granted = struct.pack('<Bddd', how, fence, attempt, previous)
if left == 1 then return { granted, string.sub(read, behind + 1) } end
return granted
