-- The work is done. The holder's number: for how long the outcome is kept; its bytes: the outcome. The first one stays,
-- should the holder say so again
if phase == 0 then return 'over' end
if phase ~= 2 then
  phase, left, since, till, expires, whole, keep, news = 2, 0, now, 0, now + number * 1000, ours, ARGV[2], '2'
end
