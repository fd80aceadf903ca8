-- Announces that the truth behind the key is about to change.
-- ARGV: 1 the head of the write
if own_token == NONE then error(redis.error_reply('ERR a write that makes no sense: ' .. key)) end
if kind < 4 then
  leave(4, own_token, now + own_length, own_length)
else
  -- Of two writes at once it is not known which is the last.
  if kind == 5 or token ~= own_token then kind, token = 5, NONE end
  if left <= own_length then till, length = now + own_length, own_length end
  leave(kind, token, till, length)
end
return 1
