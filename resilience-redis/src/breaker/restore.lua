-- ARGV: 1 channel, 2 epoch, 3 state, 4 stage, 5 remaining_ms, 6 age_ms, 7 trips, 8 by, 9 cause, 10 order,
-- 11 order_reason, 12 order_by, 13 order_left (-1: no end)
local epoch, stage, remaining = number(ARGV[2], 'epoch'), number(ARGV[4], 'stage'), number(ARGV[5], 'remaining_ms')
local age, trips, order_left = number(ARGV[6], 'age_ms'), number(ARGV[7], 'trips'), tonumber(ARGV[13])
if epoch <= r.epoch then return answer(0) end
forget_probes()
r.epoch, r.state, r.stage, r.since = epoch, ARGV[3], stage, math.max(now - age, 0)
-- With nothing left, an open state or a stage is over, not without end.
local timed = ARGV[3] == 'open' or ARGV[3] == 'ramp_up'
r.till = timed and now + remaining or 0
r.trips, r.by, r.cause = trips, ARGV[8], ARGV[9]
r.order, r.order_reason, r.order_by = ARGV[10], ARGV[11], ARGV[12]
r.order_until = order_left < 0 and 0 or now + order_left
save()
keep()
log('restored', r.by, r.cause, timed and remaining or -1)
return answer(1)
