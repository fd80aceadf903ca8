-- The record of one bulkhead; stands in front of every script of this folder. See resilience_core's `Record`: the same
-- fields, the same steps. Moments are in microseconds of the record's own time. In front of this stand shown.lua,
-- record_time.lua, and call_up.lua.
--
-- KEYS: 1 state (hash: born, fence, in_flight, at, lead, format), 2 leases (zset: id, until), 3 held (hash: id, cost:fence),
-- 4 queue (zset: id, number), 5 tickets (hash: id, cost:limit:until), 6 live (zset: instance, until)
-- ARGV: 1 channel

local EXACT = 9007199254740992
-- The format of records and messages. A later version adds fields to it, or raises this number.
local FORMAT = 1
-- The time of a record is noted at most this often.
local NOTED = 100000

local function whole(value, name, least)
  local n = tonumber(value)
  if not n or n ~= math.floor(n) or n < least or n >= EXACT then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number in range: ' .. tostring(value)))
  end
  return n
end

-- Milliseconds, in microseconds. A day at most, and twice that in what is derived from it.
local function span(value, name, least)
  local ms = whole(value, name, least)
  if ms > 172800000 then error(redis.error_reply('ERR ' .. name .. ' is too long: ' .. value)) end
  return ms * 1000
end

local function text(number)
  return string.format('%.0f', number)
end

-- All reads come first: a key of another type ends the script before it wrote anything.
local state = redis.call('HMGET', KEYS[1], 'born', 'fence', 'in_flight', 'at', 'lead', 'format')
if tonumber(state[6] or FORMAT) > FORMAT then
  error(redis.error_reply('ERR a record of a later format: ' .. state[6]))
end
local born, fence = tonumber(state[1] or 0), tonumber(state[2] or 0)
local noted_at, noted_lead = tonumber(state[4] or 0), tonumber(state[5] or 0)
local now, lead = record_time(shown, noted_at, noted_lead, floor, 1000000)
local ended = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
local leases = redis.call('ZCARD', KEYS[2])
redis.call('HLEN', KEYS[3])
local queue, waiting = {}, redis.call('ZRANGE', KEYS[4], 0, -1)
redis.call('HLEN', KEYS[5])

-- What is known of a lease: its places, its fence.
local function held(id)
  local known = redis.call('HGET', KEYS[3], id)
  if not known then return nil end
  local cost, under = string.match(known, '^(%d+):(%d+)$')
  return tonumber(cost), tonumber(under)
end

local in_flight = tonumber(state[3] or '')
if leases == 0 then
  in_flight = 0
elseif not in_flight then
  in_flight = 0
  for _, known in ipairs(redis.call('HVALS', KEYS[3])) do
    in_flight = in_flight + tonumber(string.match(known, '^(%d+):') or 0)
  end
end

-- Those whose time is over. Nothing is written before `sweep`.
local freed, left = false, {}
for _, id in ipairs(ended) do
  in_flight = in_flight - (held(id) or 0)
  leases = leases - 1
end
for i, id in ipairs(waiting) do
  local cost, limit, till = string.match(redis.call('HGET', KEYS[5], id) or '', '^(%d+):(%d+):(%d+)$')
  if cost and tonumber(till) > now then
    queue[#queue + 1] = { id = id, cost = tonumber(cost), limit = tonumber(limit), till = tonumber(till) }
  else
    left[#left + 1] = id
  end
end

local function leave_queue(id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[5], id)
  freed = true
end

local function sweep()
  for _, id in ipairs(ended) do
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    freed = true
  end
  for _, id in ipairs(left) do leave_queue(id) end
end

local function position(id)
  for i, ticket in ipairs(queue) do
    if ticket.id == id then return i end
  end
end

-- Never shortens: what one caller needs for long must not go with what another needs briefly. Twice as long as asked
-- for, so that this is not done on every call.
local function keep(key, micros)
  local ms = math.ceil(micros / 1000)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, 2 * ms + 1000) end
end

local function begin()
  if born == 0 then born = now end
end

local function take(id, cost, under, lasting)
  redis.call('ZADD', KEYS[2], now + lasting, id)
  redis.call('HSET', KEYS[3], id, text(cost) .. ':' .. text(under))
  in_flight, leases = in_flight + cost, leases + 1
end

-- Returns stand at the end of the arguments, in pairs: id, fence (empty: whichever).
local function check_returns(from)
  for i = from, #ARGV, 2 do
    if ARGV[i + 1] ~= '' then whole(ARGV[i + 1], 'fence', 0) end
  end
end

-- For each whether it was held.
local function take_back(from)
  local released = {}
  for i = from, #ARGV, 2 do
    local id, claimed = ARGV[i], tonumber(ARGV[i + 1])
    local at = position(id)
    if at then
      leave_queue(id)
      table.remove(queue, at)
    end
    local cost, under = held(id)
    local is_held = under and (not claimed or claimed == under)
    if is_held then
      redis.call('ZREM', KEYS[2], id)
      redis.call('HDEL', KEYS[3], id)
      in_flight, leases = in_flight - cost, leases - 1
      freed = true
    end
    released[#released + 1] = is_held and 1 or 0
  end
  return released
end

-- The end of every script that may have written.
local function save(lasting)
  if born == 0 then return end
  redis.call('HSET', KEYS[1], 'born', text(born), 'fence', text(fence), 'in_flight', text(in_flight))
  keep(KEYS[1], lasting)
  keep(KEYS[2], lasting)
  keep(KEYS[3], lasting)
end

-- Notes the time of the record, if there is one, when `every` has passed or the clock was set. A server that is full and has
-- written nothing yet refuses, and so does one that takes no writes: a later step does it.
local function note(every)
  if born > 0 and (lead ~= noted_lead or now - noted_at >= every) then
    redis.pcall('HSET', KEYS[1], 'at', text(now), 'lead', text(lead), 'format', FORMAT)
  end
end

-- The end of every script that may write. Calls up the wishes for which there is room, each beside those before it.
local function done(answer)
  note(NOTED)
  if freed and #queue > 0 then
    local up, taken = {}, in_flight
    for _, ticket in ipairs(queue) do
      taken = taken + ticket.cost
      if taken <= ticket.limit then up[#up + 1] = ticket.id end
    end
    if #up > 0 then call_up(up) end
  end
  return answer
end

local function view(answer)
  local live = redis.call('ZCOUNT', KEYS[6], '(' .. text(now), '+inf')
  local seen = { in_flight, leases, #queue, live, text(fence) }
  for i, value in ipairs(answer) do seen[#seen + 1] = value end
  return seen
end
