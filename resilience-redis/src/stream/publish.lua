-- Stores messages.
-- KEYS: 4 the producer, if there is a sequence (string: format and highest number)
-- ARGV: 1 incarnation of a stream that does not exist, 2 number of the first message (0: none), 3 how long the producer is
-- remembered, 4 number of messages; for each its delay, the number of fields and values, and those
-- Answer, for each: its position, 0 delayed, 1 a duplicate
local incarnation, first = whole(ARGV[1], 'an incarnation', 1, EXACT - 1), whole(ARGV[2], 'a sequence', 0, EXACT - 1)
local remember, many = whole(ARGV[3], 'a time', 0, MOST), whole(ARGV[4], 'a number of messages', 1, 1000)
local messages, longest, at = {}, 0, 5
for i = 1, many do
  local delay, fields = whole(ARGV[at], 'a delay', 0, MOST), whole(ARGV[at + 1], 'a number of fields', 2, 200)
  if not ARGV[at + 1 + fields] or fields % 2 == 1 then senseless('a message', i) end
  messages[i] = { delay, at + 2, at + 1 + fields }
  longest = math.max(longest, delay)
  at = at + 2 + fields
end
if ARGV[at] or (first > 0 and not KEYS[4]) then senseless('a publish', many) end

-- All reads come first: a key of another type ends the script before it wrote anything.
local is_new = redis.call('TYPE', LOG).ok == 'none'
redis.call('XLEN', LOG)
if longest > 0 then redis.call('ZCARD', DELAYED) end
local kept = tonumber(redis.call('HGET', META, 'keep')) or DAY
local known = 0
if first > 0 then known = tonumber(string.match(redis.call('GET', KEYS[4]) or '', '^1:(%d+)$') or 0) end

if is_new then begin_stream(text(incarnation)) end
local answers = {}
for i, it in ipairs(messages) do
  if first > 0 and first + i - 1 <= known then
    answers[i] = 1
  elseif it[1] == 0 then
    answers[i] = redis.call('XADD', LOG, '*', unpack(ARGV, it[2], it[3]))
  else
    local number = string.format('%016x', redis.call('HINCRBY', META, 'number', 1))
    local packed = cmsgpack.pack({ unpack(ARGV, it[2], it[3]) })
    redis.call('ZADD', DELAYED, now + it[1], number .. packed)
    answers[i] = 0
  end
end
if first > 0 then
  redis.call('SET', KEYS[4], '1:' .. text(math.max(known, first + many - 1)), 'PX', remember)
end
-- Not with each message.
if redis.call('PTTL', LOG) < kept / 2 + longest then
  keep(LOG, kept + longest)
  keep(META, kept + longest)
end
if longest > 0 then keep(DELAYED, kept + longest) end
return answers
