-- Asks to load the key.
-- ARGV: 1 the head of a lease, and behind it the version that is to be loaded again (8 bytes; zeros: none)
-- Answer, packed: a byte (0 granted, 1 fresh, 2 held by another, 3 refused), milliseconds left (6 bytes), the time in microseconds
-- (a double); with the record, if there is a value, in a list
if #asked ~= 72 or own_token == NONE or own_length < 1 then
  error(redis.error_reply('ERR a lease that makes no sense: ' .. key))
end
if kind >= 3 then return struct.pack('<BI6d', 3, left, micros) end

local how, rest = 0, 0
if is_value and age < fresh and version ~= string.sub(asked, 65) then
  how = 1
elseif token ~= NONE and token ~= own_token then
  how, rest = 2, left
elseif is_value then
  -- The value stays where it is.
  redis.call('SETRANGE', key, '44', struct.pack('<c8I6I6', own_token, now + own_length, own_length))
  if own_length > keep - age and redis.call('PTTL', key) < own_length then redis.call('PEXPIRE', key, own_length) end
else
  local record = struct.pack('<c52I6I6', asked, now + own_length, own_length)
  redis.call('SET', key, record, 'PX', own_length)
end
local answer = struct.pack('<BI6d', how, rest, micros)
if is_value then return { answer, redis.call('GET', key) } end
return answer
