-- Dead letters, in order.
-- ARGV: 3 position of the first one, 4 maximum number
-- Answer: position, deliveries, reason, age, failures (delivery, consumer, age, reason or 0), fields or 0, for each
local max = whole(ARGV[4], 'a number of messages', 0, 1000)
local found = {}
for _, at in ipairs(redis.call('ZRANGEBYLEX', DEAD_ORDER, '[' .. order(ARGV[3]), '+', 'LIMIT', 0, max)) do
  local packed = redis.call('HGET', DEAD, at)
  if packed then
    local letter = cmsgpack.unpack(packed)
    local failures = {}
    for i, it in ipairs(letter[5]) do failures[i] = { it[1], it[2], math.max(now - it[3], 0), it[4] or 0 } end
    found[#found + 1] =
      { id_of(at), letter[2], letter[3], math.max(now - letter[4], 0), failures, letter[6] or 0 }
  end
end
return found
