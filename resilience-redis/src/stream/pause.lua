-- Pauses a group, or resumes it.
-- ARGV: 3 for how long (-1: until it is resumed; empty: resume), 4 by whom, 5 why
-- Answer: whether the group exists
local ms = ARGV[3] ~= '' and whole(ARGV[3], 'a time', -1, MOST)
if not summary() then return 0 end
begin_step()
if ms then
  redis.call('HSET', STATE, 'pause', cmsgpack.pack({ FORMAT, ms < 0 and -1 or now + ms, ARGV[4], ARGV[5] }))
  redis.call('PEXPIRE', STATE, kept)
else
  redis.call('HDEL', STATE, 'pause')
end
return 1
