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
  local command = { 'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>' }
  -- Not having the group matters, even when there is no room.
  if left <= 0 then command = { 'XPENDING', key, ARGV[1] } end
  local read = redis.pcall(unpack(command))
  if type(read) ~= 'table' then
    answers[i] = {}
  elseif not read.err then
    answers[i] = left > 0 and read[1][2] or {}
    left = left - #answers[i]
  elseif string.find(read.err, 'NOGROUP', 1, true) then
    answers[i] = 0
  elseif i == 1 then
    -- Raises the error.
    return redis.call(unpack(command))
  else
    -- What was delivered before is not lost for that.
    answers[i] = {}
  end
end
return answers
