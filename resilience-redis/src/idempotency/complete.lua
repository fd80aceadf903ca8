-- The work is done. The holder's number: for how long the outcome is kept; its bytes: the outcome. The first one stays,
-- should the holder say so again
if phase == 0 then return 'over' end
if phase == 2 then
  save()
  return answer
end
phase, since, till, expires, news = 2, now, 0, now + number * 1000, true
if left == 1 then
  left = 0
  call('HDEL', key, 'checkpoint')
end
save('outcome', bytes)
return answer
