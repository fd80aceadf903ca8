-- Renews the lease. The holder's number: the lease from now on
if phase ~= 1 then return 'over' end
lease, till, keep = number, now + number * 1000, math.max(number, retention)
