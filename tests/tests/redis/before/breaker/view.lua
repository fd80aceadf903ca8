-- ARGV: 1 channel (unused)
return answer(1)
