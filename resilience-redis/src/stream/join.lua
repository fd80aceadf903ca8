-- Makes a consumer known to a group.
-- ARGV: 3 incarnation of a stream that does not exist, 4 lease, 5 how long the stream and the group are kept, 6 where the group
-- begins (a position, `$`, or `ago`), 7 how long ago, 8 incarnation that the consumer knows (0: none), 9 position up to which
-- it knows everything to be settled, 10 the group's part of keys
-- Answer: incarnation; 0 the group existed, 1 it was created, 2 restored, 3 recreated; where it begins
local candidate = whole(ARGV[3], 'an incarnation', 1, EXACT - 1)
local lease, ms = whole(ARGV[4], 'a lease', 1, MOST), whole(ARGV[5], 'a time', 1, MOST)
local start, ago = ARGV[6], whole(ARGV[7], 'a time', 0, MOST)
whole(ARGV[8], 'an incarnation', 0, EXACT - 1)
order(ARGV[9])
if start == 'ago' then
  start = before(text(math.max(now - ago, 0)) .. '-0')
elseif start ~= '$' then
  order(start)
end

local groups, incarnation = look()
local bookmark = redis.call('HGET', META, 'b:' .. group)
local old = tonumber(redis.call('HGET', META, 'keep') or 0)
local how, from = 0, start
if groups and groups[group] then
  -- Behind this, a server that is out of memory refuses nothing.
  redis.call('PEXPIRE', STATE, ms)
end
if not incarnation then
  incarnation = text(candidate)
  begin_stream(incarnation)
end
if not (groups and groups[group]) then
  local marked, at = string.match(bookmark or '', '^(%d+) (%S+)$')
  if marked == incarnation then
    how, from = 2, at
  elseif ARGV[8] == incarnation then
    how, from = 2, ARGV[9]
  elseif marked or ARGV[8] ~= '0' then
    how, from = 3, '0-0'
  else
    how = 1
  end
  redis.call('XGROUP', 'CREATE', LOG, group, from)
  -- What waits or is held after the bookmark is read again.
  redis.call('DEL', STATE, RECORDS, DUE, ORDER)
end
redis.call('XGROUP', 'CREATECONSUMER', LOG, group, consumer)
redis.call('HSET', STATE, 'format', FORMAT, 'keep', ms, 'seen', now, 'c:' .. consumer, lease, 's:' .. consumer, now)
-- By this, the next claim finds that the clock was set back.
redis.call('HSETNX', STATE, 'at', now)
redis.call('HSET', META, 'format', FORMAT, 'keep', math.max(old, ms), 'g:' .. group, ARGV[10])
for _, key in ipairs(KEYS) do keep(key, ms) end
return { tonumber(incarnation), how, how == 2 and from or '0-0' }
