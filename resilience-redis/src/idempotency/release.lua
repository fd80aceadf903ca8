-- Gives the key back, or records an unknown outcome. The holder's number: 1 to give back, 4 for unknown
local rested = number - 1
if rested ~= 0 and rested ~= 3 then error(redis.error_reply('ERR no phase to rest in: ' .. key)) end
if phase == 2 or (phase == 0 and rested == 3) then return 'over' end
-- The outcome of the previous attempt is as unknown as it was, unless the holder found out.
if rested == 0 and before < 2 then previous = before end
if rested == 0 and previous == 3 then rested = 3 end
if phase ~= rested then
  phase, since, till, keep, news = rested, now, 0, retention, rested
end
