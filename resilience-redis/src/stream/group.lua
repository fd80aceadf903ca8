-- One group; comes behind header.lua.
--
-- A message is delivered for the first time by XREADGROUP, and held in the group's list of Redis (PEL) until it is settled or
-- delivered again. From its second delivery on, and while it waits for that, it has a record here instead: that way it has a
-- time of its own at which it is due, its failures, and, when it was removed from the stream, a place. What is in both, because
-- the group was sought, is what Redis says.
--
-- KEYS: 4 state (hash: format, how long the group is kept, when it was seen, its count of skipped messages, its pause, a point up
-- to which the stream was counted, when a claim was last made; by consumer: `c:` its lease, `s:` when it was seen, `h:` number of records that it holds),
-- 5 records (hash by position: packed), 6 due (zset: position, when another delivery is due), 7 order (zset: position), 8 dead
-- (hash by position: packed), 9 order of the dead (zset)
-- ARGV: 1 group, 2 consumer
local STATE, RECORDS, DUE, ORDER, DEAD, DEAD_ORDER = unpack(KEYS, 4, 9)
local group, consumer = ARGV[1], ARGV[2]

-- The summary of what is held; nothing: the group does not exist.
local function summary() return try('NOGROUP', 'XPENDING', LOG, group) end

local function check_format(format)
  if tonumber(format or FORMAT) > FORMAT then error(redis.error_reply('ERR a group of a later format: ' .. format)) end
end

local kept
-- Comes before the other writes of a step: behind it, a server that is out of memory refuses nothing.
local function begin_step()
  if kept then return end
  local state = redis.call('HMGET', STATE, 'keep', 'format')
  check_format(state[2])
  kept = tonumber(state[1]) or DAY
  redis.call('PEXPIRE', STATE, kept)
end

local function seen() redis.call('HSET', STATE, 'seen', now, 's:' .. consumer, now) end

-- A record: format, holder (empty: it waits), when another delivery is due, the lease or the wait that this is the end of,
-- deliveries, failures (delivery, consumer, when, why or false), fields of the message if it is kept here, or false.
local function get(at)
  local packed = redis.call('HGET', RECORDS, at)
  return packed and cmsgpack.unpack(packed)
end

local function count_held(name, by)
  if name ~= '' and redis.call('HINCRBY', STATE, 'h:' .. name, by) <= 0 then redis.call('HDEL', STATE, 'h:' .. name) end
end

local wrote, buried
local function put(at, record)
  wrote = true
  redis.call('HSET', RECORDS, at, cmsgpack.pack(record))
  redis.call('ZADD', DUE, record[3], at)
  redis.call('ZADD', ORDER, 0, at)
end

-- Removes a record, if there is one.
local function drop(at)
  local record = get(at)
  if record then
    count_held(record[2], -1)
    redis.call('HDEL', RECORDS, at)
  end
  redis.call('ZREM', DUE, at)
  redis.call('ZREM', ORDER, at)
end

local function fail(failures, delivery, name, reason)
  if #failures >= 8 then table.remove(failures, 1) end
  failures[#failures + 1] = { delivery, name, now, reason }
end

-- What was written lasts as long as the group.
local function keep_group()
  if wrote then for i = 5, 7 do keep(KEYS[i], kept) end end
  if buried then for i = 8, 9 do keep(KEYS[i], kept) end end
end

local function bury(at, letter)
  buried = true
  redis.call('HSET', DEAD, at, cmsgpack.pack(letter))
  redis.call('ZADD', DEAD_ORDER, 0, at)
end

-- A message in the PEL: position, consumer, idle time, deliveries.
local function in_pel(id) return redis.call('XPENDING', LOG, group, id, id, 1)[1] end
