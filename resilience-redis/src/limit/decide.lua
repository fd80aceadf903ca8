-- One decision about the limits of one subject, all or nothing. In front of this stand token_bucket.lua, record_time.lua and
-- bucket.lua.
--
-- KEYS: the subject's buckets
-- ARGV: for each limit, one behind the other, its mark (four bytes) and four packed doubles: capacity, rate, unit, cost
-- Answer, packed: outcome (a byte: 1 admitted, 0 wait, -1 impossible), binding (two bytes, from 1), microseconds to wait
-- (a double), then for each limit, as doubles: tokens left, microseconds until it is full

local now, lead, kept_lead
now, lead, kept_lead, others = moved(others or '', key)

-- What is asked of a limit, and its bucket as of now: mark, parts of a full one, rate, unit, cost, parts, the bucket as it is
-- kept, and its age.
local function load(from)
  local mark, capacity, rate, unit, cost = struct.unpack('<I4dddd', asked, from)
  local full = capacity * unit
  if not (capacity >= 1 and rate >= 1 and unit >= 1 and full + rate < 9007199254740992
      and cost < 9007199254740992 and cost > -9007199254740992
      and capacity % 1 + rate % 1 + unit % 1 + cost % 1 == 0) then
    error(redis.error_reply('ERR quota or cost out of range: ' .. key))
  end
  local packed
  others, packed = without(mark, others)
  if not packed then return mark, full, rate, unit, cost, full, '', 0 end
  local _, parts, at, kept = struct.unpack('<I4ddd', packed)
  if kept ~= unit then parts = converted(key, parts, kept, unit, capacity) end
  -- Where this is not exact it is far above `full`.
  parts = parts + (now - at) * rate
  if parts > full then parts = full end
  return mark, full, rate, unit, cost, parts, packed, now - at
end

-- Microseconds until a bucket has gained a number of parts.
local function till(missing, rate)
  return missing <= 0 and 0 or math.ceil(missing / rate)
end

-- Charges a limit. How it stands, packed; when it is full; how it is kept, and whether that is new.
local function left(outcome, mark, full, rate, unit, cost, parts, packed, age)
  local changed = outcome == 1 and cost ~= 0
  if changed then
    parts = parts - cost * unit
    if parts > full then parts = full end
  elseif outcome == 0 and age >= 1000000 then
    -- See token_bucket.lua.
    changed = true
  end
  local full_in = till(full - parts, rate)
  if changed then
    packed = parts < full and struct.pack('<I4ddd', mark, parts, now, unit) or ''
  end
  return struct.pack('<dd', (parts - parts % unit) / unit, full_in), full_in, packed, changed
end

-- All checks come before the write.
local limits = {}
for from = 1, #asked, 36 do limits[#limits + 1] = { load(from) } end

local outcome, binding, wait, fewest = 1, 1, 0, nil
for i, limit in ipairs(limits) do
  local _, full, rate, unit, cost, parts = unpack(limit)
  local price = math.max(cost, 0) * unit
  if price > full then
    outcome, binding, wait = -1, i, 0
    break
  end
  if price > parts then
    local micros = till(price - parts, rate)
    if micros > wait then outcome, binding, wait = 0, i, micros end
  elseif outcome == 1 then
    local more = math.floor(math.floor((parts - price) / unit) / math.max(cost, 1))
    if not fewest or more < fewest then fewest, binding = more, i end
  end
end

local answer, buckets, latest, any = { struct.pack('<bI2d', outcome, binding, wait) }, {}, 0, lead ~= kept_lead
for i, limit in ipairs(limits) do
  local full_in, changed
  answer[i + 1], full_in, buckets[i], changed = left(outcome, unpack(limit))
  latest, any = math.max(latest, full_in), any or changed
end
if any then keep(key, table.concat(buckets), latest, others, now, lead, outcome == 1 and call or redis.pcall) end
return table.concat(answer)
