-- ARGV: 1 channel, 2 instance, 3 sequence, 4 epoch, 5 success, 6 failure, 7 slow, 8 failing (0/1), 9 bucket_ms,
-- 10 live_ms, 11 voter, 12 state of the instance's own breaker (a number; empty: not told)
local instance, sequence, epoch = ARGV[2], number(ARGV[3], 'sequence'), number(ARGV[4], 'epoch')
local success, failure = number(ARGV[5], 'success'), number(ARGV[6], 'failure')
local slow, failing = number(ARGV[7], 'slow'), ARGV[8] == '1'
local voter = ARGV[11]
local bucket_ms, live_ms = math.max(number(ARGV[9], 'bucket_ms'), 1), number(ARGV[10], 'live_ms')
local told = redis.call('HLEN', KEYS[7])

-- Who fell silent, and what is too old to count. A silent instance's sequence number is remembered for as long as a
-- report of it could still be repeated.
local bygone = now - BUCKETS * bucket_ms
local gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', bygone)
if #gone > 0 then
  for i = 1, #gone, 1000 do
    redis.call('HDEL', KEYS[5], unpack(gone, i, math.min(i + 999, #gone)))
    redis.call('HDEL', KEYS[7], unpack(gone, i, math.min(i + 999, #gone)))
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', bygone)
end
-- The first write of every report takes no memory: a server that is full lets the script go on after it.
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
if told > reporters then
  -- Instances of the version before do not remove from here who fell silent.
  for _, one in ipairs(redis.call('HKEYS', KEYS[7])) do
    if not redis.call('ZSCORE', KEYS[3], one) then redis.call('HDEL', KEYS[7], one) end
  end
end
-- While instances differ in their window, counts move to the nearest bucket of the length that is reported.
local bucket, moved = math.floor(now / bucket_ms), {}
for i = 1, #window, 2 do
  local of, kind = string.match(window[i], '^(%d+):(%a)$')
  of = tonumber(of or 0)
  if r.bucket_ms ~= bucket_ms and kind then
    local nearest = math.floor((of * r.bucket_ms + math.floor(bucket_ms / 2)) / bucket_ms)
    if nearest > bucket - BUCKETS then
      local field = nearest .. ':' .. kind
      moved[field] = (moved[field] or 0) + tonumber(window[i + 1])
    end
  end
  if r.bucket_ms ~= bucket_ms or of <= bucket - BUCKETS then redis.call('HDEL', KEYS[2], window[i]) end
end
for field, count in pairs(moved) do
  redis.call('HSET', KEYS[2], field, count)
end

local known = tonumber(redis.call('HGET', KEYS[5], instance) or 0)
local current = epoch == r.epoch
if current and sequence > known then
  if success > 0 then redis.call('HINCRBY', KEYS[2], bucket .. ':s', success) end
  if failure > 0 then redis.call('HINCRBY', KEYS[2], bucket .. ':f', failure) end
  if slow > 0 then redis.call('HINCRBY', KEYS[2], bucket .. ':w', slow) end
end
redis.call('HSET', KEYS[5], instance, math.max(sequence, known))
redis.call('HSET', KEYS[7], instance,
  FORMAT .. ':' .. ARGV[12] .. ':' .. now .. ':' .. (voter == instance and '' or voter))
redis.call('ZADD', KEYS[3], now + live_ms, instance)
if current and failing then
  redis.call('ZADD', KEYS[4], now + math.min(bucket_ms * BUCKETS, live_ms), voter)
  voters = voters + 1
elseif voters > 0 then
  redis.call('ZREM', KEYS[4], voter)
end
if r.bucket_ms ~= bucket_ms then
  r.bucket_ms = bucket_ms
  redis.call('HSET', KEYS[1], 'bucket_ms', bucket_ms)
end
keep()
extend(KEYS[2], 2 * BUCKETS * bucket_ms)
-- As a rule no instance finds the dependency failing, and there is no key.
for _, i in ipairs({ 3, 5, 7, voters > 0 and 4 or nil }) do
  extend(KEYS[i], live_ms + 2 * BUCKETS * bucket_ms)
end
window = redis.call('HGETALL', KEYS[2])
return answer(1)
