-- One stream; comes first in every script about one. Steps and answers are those of resilience_core's `stream::StreamBroker`.
--
-- KEYS: 1 log (stream: the messages), 2 meta (hash: format, how long the stream is kept, number of removed messages, number of
-- delayed messages so far; by group: `g:` the group's part of keys, `b:` its bookmark, `r:` when a group of that name was removed
-- last), 3 delayed (zset: number and packed message, due)
-- Moments are in milliseconds of the server's clock.
--
-- The incarnation of the stream is the name of a group of Redis, behind a `~`, so that it is lost with the messages and with
-- nothing else. A group whose own name begins with `~` has another `~` in front.
local LOG, META, DELAYED = KEYS[1], KEYS[2], KEYS[3]
local FORMAT, DAY, MOST, EXACT = 1, 86400000, 1000000000000, 9007199254740992

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = (micros - micros % 1000) / 1000

local function senseless(what, value)
  error(redis.error_reply('ERR ' .. what .. ' makes no sense: ' .. tostring(value)))
end

local function whole(value, what, least, most)
  local number = tonumber(value)
  if not number or number ~= math.floor(number) or number < least or number > most then senseless(what, value) end
  return number
end

local function text(number) return string.format('%.0f', number) end

-- A position as digits that are ordered as positions are, and back.
local function order(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if not ms or #ms > 20 or #seq > 20 then senseless('a position', id) end
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end

local function bare(digits) return (string.match(digits, '^0*(%d+)$')) end

local function id_of(at) return bare(string.sub(at, 1, 20)) .. '-' .. bare(string.sub(at, 21)) end

-- Numbers of 20 digits are not counted with: one less, of a number that is not zero.
local function less(digits)
  local head, last, zeros = string.match(digits, '^(%d-)([1-9])(0*)$')
  return bare(head .. (last - 1) .. string.rep('9', #zeros))
end

local function before(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq ~= '0' then return ms .. '-' .. less(seq) end
  if ms == '0' then return id end
  return less(ms) .. '-18446744073709551615'
end

-- The answer to a command; nothing, if it is the error that is expected. Any other error is raised by the command itself.
local function try(expected, ...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, expected, 1, true) then return nil end
  return redis.call(...)
end

-- A flat list of names and values.
local function named(list)
  local values = {}
  for i = 1, #list, 2 do values[list[i]] = list[i + 1] end
  return values
end

-- The groups by name, and the incarnation. Nothing: there is no stream.
local function look()
  local infos = try('no such key', 'XINFO', 'GROUPS', LOG)
  if not infos then return nil end
  local groups, incarnation = {}, nil
  for _, info in ipairs(infos) do
    local it = named(info)
    local mark = string.match(it.name, '^~(%d+)$')
    if mark then incarnation = mark else groups[it.name] = it end
  end
  return groups, incarnation
end

-- Begins a stream, or an incarnation of one that another program has made.
local function begin_stream(incarnation)
  redis.call('XGROUP', 'CREATE', LOG, '~' .. incarnation, '0-0', 'MKSTREAM')
  redis.call('HDEL', META, 'trimmed')
  redis.call('HSET', META, 'format', FORMAT)
end

-- Keeps a key for this time at least, if it exists.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left ~= -2 and left < ms then redis.call('PEXPIRE', key, ms) end
end

local function message(id)
  local entry = redis.call('XRANGE', LOG, id, id)[1]
  return entry and entry[2] or false
end

-- The keys of a group, and the keys that other keys of the stream begin with.
local BASE = string.sub(LOG, 1, -5)
local function key_of(group, part)
  local name = redis.call('HGET', META, 'g:' .. group)
  return name and BASE .. ':group:' .. name .. part
end
