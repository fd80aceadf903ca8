-- Gives a lease back without a value.
-- ARGV: 1 the head of the lease
if kind > 2 or token == NONE or token ~= own_token then return 0 end
if kind == 0 then
  redis.call('DEL', key)
else
  redis.call('SETRANGE', key, '44', string.rep('\0', 20))
end
return 1
