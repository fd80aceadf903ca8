-- One decision about several limits of one subject, all or nothing. In front of this stands convert.lua.
--
-- KEYS: a bucket each
-- ARGV: for each key, four packed doubles: capacity, rate, unit, cost
-- Answer, packed doubles: outcome (1 admitted, 0 wait, -1 impossible), binding (from 1), microseconds to wait, then
-- for each key: tokens left, microseconds until it is full

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- What is asked of a limit, and its bucket as of now: parts of a full one, rate, unit, cost, parts, how far the clock is
-- behind, whether there is a key, whether the clock was set back.
local function load(key, asked)
  local capacity, rate, unit, cost = struct.unpack('<dddd', asked)
  local full = capacity * unit
  if not (capacity >= 1 and rate >= 1 and unit >= 1 and full + rate < 9007199254740992
      and cost < 9007199254740992 and cost > -9007199254740992
      and capacity % 1 + rate % 1 + unit % 1 + cost % 1 == 0) then
    error(redis.error_reply('ERR quota or cost out of range: ' .. key))
  end
  local packed = redis.call('GET', key)
  if not packed then return full, rate, unit, cost, full, 0, false, false end
  if #packed ~= 24 then error(redis.error_reply('ERR no bucket: ' .. key)) end
  local parts, at, kept = struct.unpack('<ddd', packed)
  if kept ~= unit then parts = converted(key, parts, kept, unit, capacity) end
  local behind = at - now
  if behind <= 0 then
    -- Where this is not exact it is far above `full`.
    parts = parts - behind * rate
    behind = 0
  end
  if parts > full then parts = full end
  -- The machine's TOLERATED_STEP.
  if behind > 100000 then return full, rate, unit, cost, parts, 0, true, true end
  return full, rate, unit, cost, parts, behind, true, false
end

-- Microseconds until a bucket has gained so many parts.
local function till(missing, rate, behind)
  if missing <= 0 then return 0 end
  return math.ceil(missing / rate) + behind
end

-- Charges a limit, writes it down and tells how it stands.
local function leave(key, admitted, full, rate, unit, cost, parts, behind, known, changed)
  if admitted and cost ~= 0 then
    parts, changed = parts - cost * unit, true
    if parts > full then parts = full end
  end
  local full_in = till(full - parts, rate, behind)
  if changed then
    if parts < full then
      redis.call('SET', key, struct.pack('<ddd', parts, now + behind, unit), 'PX', math.ceil(full_in / 1000))
    elseif known then
      redis.call('DEL', key)
    end
  end
  return struct.pack('<dd', (parts - parts % unit) / unit, full_in)
end

-- All reads, and all checks, come before the first write.
local limits = {}
for i, key in ipairs(KEYS) do limits[i] = { load(key, ARGV[i]) } end

local outcome, binding, wait, fewest = 1, 1, 0, nil
for i, limit in ipairs(limits) do
  local full, rate, unit, cost, parts, behind = unpack(limit)
  local price = math.max(cost, 0) * unit
  if price > full then
    outcome, binding, wait = -1, i, 0
    break
  end
  if price > parts then
    local micros = till(price - parts, rate, behind)
    if micros > wait then outcome, binding, wait = 0, i, micros end
  elseif outcome == 1 then
    local more = math.floor(math.floor((parts - price) / unit) / math.max(cost, 1))
    if not fewest or more < fewest then fewest, binding = more, i end
  end
end

local answer = { struct.pack('<ddd', outcome, binding, wait) }
for i, limit in ipairs(limits) do answer[i + 1] = leave(KEYS[i], outcome == 1, unpack(limit)) end
return table.concat(answer)
