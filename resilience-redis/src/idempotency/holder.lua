-- Stands behind common.lua in the scripts of steps that only the holder may take.
--
-- ARGV: 1 the record as the holder knows it: a head with previous, attempt, fence, retention and sizes, fingerprint, owner,
-- and bytes that the script takes; 2 a number that it takes, as text; 3 channel
-- Answer: kept | restored | taken, over or gone: nothing was changed
local ours, number = ARGV[1], tonumber(ARGV[2])
local sign, _, before, _, tries, held, _, _, _, keep_ms, _, holder_about, holder_size =
  struct.unpack('<BBBBI4ddddddBB', ours)
local bytes_at = 58 + holder_about + holder_size
if sign ~= 249 or holder_size < 1 or holder_size > 128 or holder_about > 128 or bytes_at > #ours or before > 3
    or tries < 1 or not (held >= 1 and held < 9007199254740992 and keep_ms >= 1 and keep_ms <= 1000000000000
    and held % 1 + keep_ms % 1 == 0) or not (number and number >= 1 and number <= 1000000000000 and number % 1 == 0) then
  error(redis.error_reply('ERR a holder that makes no sense: ' .. key))
end

-- What becomes of the record: `whole`, with a head to be written over, or only its head is written anew, by save.lua; how
-- long that is kept, as text, if that is at hand; and the phase that whoever waits has to be told of.
local answer, whole, keep, news = 'kept', nil, nil, false
if fence ~= held or about_size ~= holder_about or string.sub(read, 59, behind) ~= string.sub(ours, 59, bytes_at) then
  -- An outcome that was accepted stays, whoever has brought it back.
  if fence >= held or phase == 2 then return 'taken' end
  -- Fences are made of the clock, so this one tells when the claim was granted.
  if now > held + keep_ms * 1000 then return 'gone' end
  -- Brought back. Only the checkpoint of the same work is of use.
  answer, whole = 'restored', ours
  if left == 1 and string.sub(read, 59, 58 + about_size) == string.sub(ours, 59, 58 + holder_about) then
    whole = ours .. redis.call('GETRANGE', key, behind, '-1')
  else
    left = 0
  end
  phase, previous, attempt, fence, since, till, lease, retention, about_size, owner_size =
    1, before, tries, held, held, 0, 0, keep_ms, holder_about, holder_size
end
