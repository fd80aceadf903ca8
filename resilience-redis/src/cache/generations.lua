-- Answer: for each tag its generation, and the milliseconds since it was invalidated (-1: it was not)
local answer, wrote = {}, false
for i, key in ipairs(KEYS) do
  local number, at = read(key)
  if not number then
    number, wrote = now, true
    redis.call('SET', key, string.format('%.0f', number), 'PX', ttl)
  elseif redis.call('PTTL', key) < keep then
    redis.call('PEXPIRE', key, ttl)
    wrote = true
  end
  -- Further ahead than this: noted before the clock was set back.
  local since = -1
  if at and at <= now + 1000000 then since = math.floor(math.max(now - at, 0) / 1000) end
  answer[2 * i - 1], answer[2 * i] = number, since
end
-- The server reports later changes of keys that a script has read last, and not of keys that it has written.
if wrote then redis.call('EXISTS', unpack(KEYS)) end
return answer
