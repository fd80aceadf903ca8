-- Saves a checkpoint and renews the lease. The holder's number: the lease from now on; its bytes: the checkpoint
if phase ~= 1 then return 'over' end
lease, till, keep = number, now + number * 1000, math.max(number, retention)
left, tail = 1, string.sub(ours, 52)
