-- Somebody found out what has become of an attempt.
-- ARGV: 1 channel, 2 fence, 3 done or release, and of what is done: 4 ttl, 5 outcome
local fence, how = number(2, 'fence', 1), ARGV[3]
local ttl = how == 'done' and span(4, 'ttl')
if how ~= 'release' and not (how == 'done' and ARGV[5]) then error(redis.error_reply('ERR no resolution')) end
if r.fence == 0 then return 'gone' end
if r.fence ~= fence or (r.phase == 'running' and r.till > now) then return 'taken' end
if r.phase == 'done' or r.phase == 'released' then return 'over' end
if how == 'done' then
  done(ARGV[5], ttl)
else
  rest('released')
  save()
end
return 'kept'
