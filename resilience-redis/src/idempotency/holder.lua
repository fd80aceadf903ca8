-- Stands behind common.lua in the scripts of steps that only the holder may take.
--
-- ARGV: 1 channel, 2 owner, 3 fingerprint, 4 packed doubles: fence, attempt, previous, retention, and a number that the
-- script takes; 5 bytes that it takes
-- Answer: kept | restored | taken, over or gone: nothing was changed
local holder, about, bytes = ARGV[2], ARGV[3], ARGV[5]
local held, tries, before, keep_ms, number = struct.unpack('<ddddd', ARGV[4])
if holder == '' or not bytes or not (held >= 1 and held < 9007199254740992 and tries >= 1 and tries <= 4294967295
    and before >= 0 and before <= 3 and keep_ms >= 1 and keep_ms <= 1000000000000
    and number >= 1 and number <= 1000000000000
    and held % 1 + tries % 1 + before % 1 + keep_ms % 1 + number % 1 == 0) then
  refuse('a holder that makes no sense')
end

local answer = 'kept'
if fence ~= held or owner ~= holder then
  -- An outcome that was accepted stays, whoever has brought it back.
  if fence >= held or phase == 2 then return 'taken' end
  -- Fences are made of the clock, so this one tells when the claim was granted.
  if now > held + keep_ms * 1000 then return 'gone' end
  -- Brought back. Only the checkpoint of the same work is of use.
  if fingerprint == about then
    call('HDEL', key, 'outcome')
  else
    call('DEL', key)
    known, left = false, 0
  end
  call('HSET', key, 'owner', holder, 'fingerprint', about)
  phase, previous, attempt, fence, since, till, lease, retention = 1, before, tries, held, held, 0, 0, keep_ms
  answer = 'restored'
end
