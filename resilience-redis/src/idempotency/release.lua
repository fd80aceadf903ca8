-- The holder gives the key back, or does not know what has become of its work. The holder's number: 1 for the one, 4 for
-- the other
local rested = number - 1
if rested ~= 0 and rested ~= 3 then error(redis.error_reply('ERR no phase to rest in: ' .. key)) end
if phase == 2 or (phase == 0 and rested == 3) then return 'over' end
-- What became of the attempt before is as open as it was, unless the holder knows.
if rested == 0 and before < 2 then previous = before end
if rested == 0 and previous == 3 then rested = 3 end
if phase ~= rested then
  phase, since, till, keep, news = rested, now, 0, retention, rested
end
