-- Delivers messages without waiting for any. The only script about several streams, which are on one server.
-- KEYS: 1.. the streams
-- ARGV: 1 group, 2 consumer, 3 maximum number of messages
-- Answer: for each stream its entries, or 0: it does not exist, or does not have the group
local left = tonumber(ARGV[3])
if not left or left < 1 or left > 1000 then
  error(redis.error_reply('ERR a number of messages makes no sense: ' .. ARGV[3]))
end
local answers = {}
for i, key in ipairs(KEYS) do
  local read
  if left > 0 then
    read = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>')
  else
    -- Not having the group matters, even when there is no room.
    read = redis.pcall('XPENDING', key, ARGV[1])
  end
  if type(read) == 'table' and read.err then
    if not string.find(read.err, 'NOGROUP', 1, true) then error(read) end
    answers[i] = 0
  elseif left > 0 and read then
    answers[i] = read[1][2]
    left = left - #answers[i]
  else
    answers[i] = {}
  end
end
return answers
