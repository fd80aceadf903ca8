-- ARGV: 1 channel, 2 to 7 the holder, 8 lease
local lease = span(8, 'lease')
return step({ running = true }, function(...)
  live(lease)
  save(...)
end)
