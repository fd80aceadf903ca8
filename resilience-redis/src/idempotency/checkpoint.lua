-- ARGV: 1 channel, 2 to 7 the holder, 8 lease, 9 checkpoint
local lease, checkpoint = span(8, 'lease'), ARGV[9]
if not checkpoint then error(redis.error_reply('ERR no checkpoint')) end
return step({ running = true }, function(...)
  live(lease)
  save('checkpoint', checkpoint, ...)
end)
