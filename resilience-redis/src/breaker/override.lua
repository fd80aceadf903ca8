-- ARGV: 1 channel, 2 order (empty: lift it), 3 reason, 4 by, 5 expires_ms (-1: never)
local expires = tonumber(ARGV[5])
r.order, r.order_reason, r.order_by = ARGV[2], ARGV[3], ARGV[4]
r.order_until = expires < 0 and 0 or now + expires
r.by, r.epoch = ARGV[4], next_epoch()
save()
keep()
if r.order == '' then
  log('cleared', r.by, '', -1)
else
  log(r.order, r.by, r.order_reason, expires)
end
return answer(1)
