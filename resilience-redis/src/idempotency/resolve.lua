-- Somebody found out what has become of an attempt.
-- ARGV: 1 channel, 2 packed doubles: fence, 1 if it was done, for how long the outcome is kept; 3 outcome
-- Answer: kept | taken, over or gone: nothing was changed
local about, was_done, ttl = struct.unpack('<ddd', ARGV[2])
if not ARGV[3] or not (about >= 1 and about < 9007199254740992 and (was_done == 0 or was_done == 1)
    and ttl >= 1 and ttl <= 1000000000000 and about % 1 + ttl % 1 == 0) then
  refuse('a resolution that makes no sense')
end
if not known then return 'gone' end
if fence ~= about or (phase == 1 and till > now) then return 'taken' end
if phase == 2 or (phase == 0 and previous ~= 2) then return 'over' end
since, till, news = now, 0, true
if was_done == 1 then
  phase, expires = 2, now + ttl * 1000
  if left == 1 then
    left = 0
    call('HDEL', key, 'checkpoint')
  end
  save('outcome', ARGV[3])
else
  phase, previous, expires = 0, 1, now + retention * 1000
  save()
end
return 'kept'
