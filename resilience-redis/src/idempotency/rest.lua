-- The holder gives the key back, or does not know what has become of its work.
-- ARGV: 1 channel, 2 to 7 the holder, 8 released or unknown
local phase = ARGV[8]
if phase ~= 'released' and phase ~= 'unknown' then error(redis.error_reply('ERR no phase to rest in')) end
return step({ running = true, unknown = true, released = phase == 'released' }, function(...)
  rest(phase)
  save(...)
end)
