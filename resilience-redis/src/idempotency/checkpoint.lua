-- A sign of life, and what the next attempt begins with. The holder's number: its lease from now on; its bytes: the
-- checkpoint
if phase ~= 1 then return 'over' end
lease, till, expires = number, now + number * 1000, now + math.max(number, retention) * 1000
left, whole = 1, ours
