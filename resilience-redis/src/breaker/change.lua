-- ARGV: 1 channel, 2 expected epoch, 3 state, 4 stage, 5 lasting_ms, 6 trips, 7 by, 8 cause
local expected, stage = number(ARGV[2], 'expected'), number(ARGV[4], 'stage')
local lasting, trips = number(ARGV[5], 'lasting_ms'), number(ARGV[6], 'trips')
if expected ~= r.epoch then return answer(0) end
enter(ARGV[3], stage, lasting)
r.trips, r.by, r.cause = trips, ARGV[7], ARGV[8]
save()
keep()
log('changed', r.by, r.cause, lasting > 0 and lasting or -1)
return answer(1)
