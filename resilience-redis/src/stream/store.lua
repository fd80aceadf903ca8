-- Stores messages in a stream that exists, at once: what nearly all publishes are. Comes in front of all others in the script that
-- publishes, because what stands there costs more than this.
local function store_at_once()
  local log, first, many, at, spans = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[4]) or 0, 5, {}
  if not string.find(ARGV[2], '^%d+$') or #ARGV[2] > 15 or many < 1 or many > 1000 then return nil end
  if first > 0 and not (KEYS[4] and string.find(ARGV[3], '^[1-9]%d*$') and #ARGV[3] <= 12) then return nil end
  for i = 1, many do
    local fields = tonumber(ARGV[at + 1])
    if ARGV[at] ~= '0' or not fields or fields < 2 or fields % 2 == 1 or not ARGV[at + 1 + fields] then return nil end
    spans[i] = at + 2
    at = at + 2 + fields
  end
  if ARGV[at] then return nil end
  spans[many + 1] = at + 2
  local known = 0
  if first > 0 then known = tonumber(string.match(redis.call('GET', KEYS[4]) or '', '^1:(%d+)$') or 0) end
  -- Not near its end.
  local left = redis.call('PTTL', log)
  if left <= 43200000 and left <= (tonumber(redis.call('HGET', KEYS[2], 'keep')) or 86400000) / 2 then return nil end
  local answers = {}
  for i = 1, many do
    answers[i] = first > 0 and first + i - 1 <= known and 1
      or redis.call('XADD', log, '*', unpack(ARGV, spans[i], spans[i + 1] - 3))
  end
  if first > 0 then
    local highest = string.format('1:%.0f', math.max(known, first + many - 1))
    redis.call('SET', KEYS[4], highest, 'PX', ARGV[3])
  end
  return answers
end
local stored = store_at_once()
if stored then return stored end
