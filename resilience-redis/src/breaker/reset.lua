-- ARGV: 1 channel, 2 by, 3 cause
enter('closed', 0, 0)
r.trips, r.by, r.cause = 0, ARGV[2], ARGV[3]
r.order, r.order_reason, r.order_by, r.order_until = '', '', '', 0
save()
keep()
log('reset', r.by, r.cause, -1)
return answer(1)
