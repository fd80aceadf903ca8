-- Follows common.lua in the scripts of steps that only the holder may take.
--
-- ARGV: 1 the record as the holder knows it: a head with previous, attempt, fence, retention and sizes, fingerprint, owner,
-- and bytes for the script; 2 a number for the script, as text
-- Answer: kept | restored | taken, over or gone: nothing was changed
local ours, number = ARGV[1], tonumber(ARGV[2])
local sign, _, before, _, tries, held, _, _, _, keep_ms, holder_about, holder_size = struct.unpack('<BBBBI4dddddBBB', ours)
local bytes_at = 52 + holder_about + holder_size
local who = string.sub(ours, 52, bytes_at - 1)
if sign ~= 249 or holder_size < 1 or holder_size > 128 or holder_about > 128 or bytes_at > #ours + 1 or before > 3
    or tries < 1 or not (held >= 1 and held < 9007199254740992 and keep_ms >= 1 and keep_ms <= 1000000000000
    and held % 1 + keep_ms % 1 == 0) or not (number and number >= 1 and number <= 1000000000000 and number % 1 == 0) then
  error(redis.error_reply('ERR a holder that makes no sense: ' .. key))
end

-- The new record: a new head, followed by `tail` if that is new, or else by the present bytes; how long it is kept, if that is
-- new; and the phase to publish, if any.
local answer, tail, keep, news = 'kept', nil, nil, false
if fence ~= held or about_size ~= holder_about or string.sub(read, 52, behind) ~= who then
  -- An accepted outcome stays, whichever holder restored it.
  if fence >= held or phase == 2 then return 'taken' end
  -- Fences are made of the clock: this one is the time of the claim.
  local time = redis.call('TIME')
  if time[1] * 1000000 + time[2] > held + keep_ms * 1000 then return 'gone' end
  -- Restored. Only a checkpoint of the same work is kept.
  answer, tail = 'restored', who
  if left == 1 and string.sub(read, 52, 51 + about_size) == string.sub(who, 1, holder_about) then
    tail = who .. redis.call('GETRANGE', key, behind, '-1')
  else
    left = 0
  end
  -- Whether a process was subscribed is no longer known.
  phase, previous, attempt, fence, since, till, lease, retention, about_size, owner_size, heard =
    1, before, tries, held, held, 0, 0, keep_ms, holder_about, holder_size, 1
end
