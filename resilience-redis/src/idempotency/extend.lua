-- A sign of life. The holder's number: its lease from now on
if phase ~= 1 then return 'over' end
lease, till, keep = number, now + number * 1000, math.max(number, retention)
