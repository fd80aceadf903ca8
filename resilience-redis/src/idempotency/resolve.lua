-- Records what was found out about an attempt with an unknown outcome.
-- ARGV: 1 packed doubles: fence, 1 if it was done; 2 for how long the outcome is kept, as text; 3 outcome
-- Answer: kept | taken, over or gone: nothing was changed
local held, was_done = struct.unpack('<dd', ARGV[1])
local number, outcome = tonumber(ARGV[2]), ARGV[3]
if not outcome or not (held >= 1 and held < 9007199254740992 and held % 1 == 0 and (was_done == 0 or was_done == 1))
    or not (number and number >= 1 and number <= 1000000000000 and number % 1 == 0) then
  error(redis.error_reply('ERR a resolution that makes no sense: ' .. key))
end
if not read then return 'gone' end
if fence ~= held then return 'taken' end
if phase == 1 and till > now then
  clamp()
  return 'taken'
end
if phase == 2 or (phase == 0 and previous ~= 2) then return 'over' end
local answer, tail, keep, news = 'kept', nil, retention, '0'
since, till = now, 0
if was_done == 1 then
  phase, left, lease, keep, news = 2, 0, number, ARGV[2], '2'
  -- Another owner: the work's own completion, should it come yet, is not taken for this outcome.
  tail, owner_size = string.sub(read, 52, 51 + about_size) .. 'resolved' .. outcome, 8
else
  phase, previous = 0, 1
end
