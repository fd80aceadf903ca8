-- Stores messages in a stream that exists, at once and without numbers: what most publishes are. Comes in front of all others in
-- the script that publishes, because what stands there costs more than this.
if ARGV[2] == '0' and (tonumber(ARGV[5]) or 1) == 0 then
  local key, many, at, spans = KEYS[1], tonumber(ARGV[4]) or 0, 5, {}
  for i = 1, many do
    local fields = tonumber(ARGV[at + 1])
    if ARGV[at] ~= '0' or not fields or fields < 2 or fields % 2 == 1 or not ARGV[at + 1 + fields] then
      many = 0
      break
    end
    spans[i] = at + 2
    at = at + 2 + fields
  end
  spans[#spans + 1] = at + 2
  -- Not near its end.
  local left = many > 0 and not ARGV[at] and redis.call('PTTL', key) or 0
  if left > 43200000 or left > (tonumber(redis.call('HGET', KEYS[2], 'keep')) or 86400000) / 2 then
    local answers = {}
    for i = 1, many do answers[i] = redis.call('XADD', key, '*', unpack(ARGV, spans[i], spans[i + 1] - 3)) end
    return answers
  end
end
