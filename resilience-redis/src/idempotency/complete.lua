-- ARGV: 1 channel, 2 to 7 the holder, 8 ttl, 9 outcome
local ttl, outcome = span(8, 'ttl'), ARGV[9]
if not outcome then error(redis.error_reply('ERR no outcome')) end
return step({ running = true, unknown = true, done = true }, function(...) done(outcome, ttl, ...) end)
