-- One decision about the limits of one subject, all or nothing: resilience_core::limit::machine, step by step, and
-- the same answers. Every number is a whole one below 2^53, and so is every product: `Quota` sees to it when it is
-- built. Quotients of such numbers, rounded up or down, are exact.
--
-- In front of this stands clock.lua: `now` in microseconds, `keep(key, value, full_in)`.
--
-- KEYS: a bucket each, as packed doubles: tokens, microsecond, rest, unit. A missing one is full.
-- ARGV: for each key: capacity, rate, unit, cost
-- Answer: outcome (1 admitted, 0 wait, -1 impossible), binding (from 1), microseconds to wait, then for each key:
-- tokens left, microseconds until it is full

-- The machine's TOLERATED_STEP.
local TOLERATED = 100000

local function whole(value, name, least)
  local n = tonumber(value)
  if not n or n ~= math.floor(n) or n < least or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number in range: ' .. tostring(value)))
  end
  return n
end

-- floor(a * b / c), where a < c: the product may have more bits than a double. Bit by bit, from the highest.
local function scaled(a, b, c)
  if a == 0 then return 0 end
  if a * b < 9007199254740992 then return math.floor(a * b / c) end
  local bit = 1
  while bit <= b do bit = bit * 2 end
  local quotient, rest = 0, 0
  while bit > 1 do
    bit = bit / 2
    quotient = quotient * 2
    if rest >= c - rest then
      rest = rest - (c - rest)
      quotient = quotient + 1
    else
      rest = rest + rest
    end
    if b >= bit then
      b = b - bit
      if rest >= c - a then
        rest = rest - (c - a)
        quotient = quotient + 1
      else
        rest = rest + a
      end
    end
  end
  return quotient
end

-- Microseconds from its own until a bucket has `tokens`, and from now.
local function till(l, tokens)
  local missing = (tokens - l.tokens) * l.unit - l.rest
  if missing <= 0 then return 0 end
  return math.ceil(missing / l.rate)
end

local function wait_for(l, tokens)
  local wait = till(l, tokens)
  if wait > 0 and l.at > now then wait = wait + l.at - now end
  return wait
end

local function load(i)
  local a = 4 * (i - 1)
  local l = {
    capacity = whole(ARGV[a + 1], 'capacity', 1), rate = whole(ARGV[a + 2], 'rate', 1),
    unit = whole(ARGV[a + 3], 'unit', 1), cost = whole(ARGV[a + 4], 'cost', -9007199254740991),
    at = now, rest = 0, moved = false,
  }
  if l.capacity * l.unit + l.rate >= 9007199254740992 then
    error(redis.error_reply('ERR capacity times unit is out of range'))
  end
  l.tokens = l.capacity
  l.price = math.max(l.cost, 0)
  local packed = redis.call('GET', KEYS[i])
  if not packed then return l end
  if #packed ~= 32 then error(redis.error_reply('ERR no bucket: ' .. KEYS[i])) end
  l.known = true
  local unit
  l.tokens, l.at, l.rest, unit = struct.unpack('<dddd', packed)
  if unit ~= l.unit then l.rest = scaled(l.rest, l.unit, unit) end
  if l.tokens >= l.capacity then l.tokens, l.rest = l.capacity, 0 end
  local passed = now - l.at
  if passed < 0 then
    if -passed > TOLERATED then l.at, l.moved = now, true end
  elseif l.tokens >= l.capacity or passed >= till(l, l.capacity) then
    l.tokens, l.rest, l.at = l.capacity, 0, now
  else
    local parts = passed * l.rate + l.rest
    local gained = math.floor(parts / l.unit)
    l.tokens, l.rest, l.at = l.tokens + gained, parts - gained * l.unit, now
  end
  return l
end

-- All reads, and all checks, come before the first write.
local limits = {}
for i = 1, #KEYS do limits[i] = load(i) end

local outcome, binding, wait = 1, 1, 0
local fewest = nil
for i, l in ipairs(limits) do
  if l.price > l.capacity then
    outcome, binding, wait = -1, i, 0
    break
  end
  if l.price > l.tokens then
    local micros = wait_for(l, l.price)
    if micros > wait then outcome, binding, wait = 0, i, micros end
  elseif outcome == 1 then
    local more = math.floor((l.tokens - l.price) / math.max(l.price, 1))
    if not fewest or more < fewest then fewest, binding = more, i end
  end
end

local answer = { outcome, binding, wait }
for i, l in ipairs(limits) do
  local granted = outcome == 1 and l.cost ~= 0
  if granted then
    l.tokens = math.min(l.tokens - l.cost, l.capacity)
    if l.tokens == l.capacity then l.rest = 0 end
  end
  local full_in = wait_for(l, l.capacity)
  if granted or l.moved then
    if l.tokens < l.capacity then
      keep(KEYS[i], struct.pack('<dddd', l.tokens, l.at, l.rest, l.unit), full_in)
    elseif l.known then
      redis.call('DEL', KEYS[i])
    end
  end
  answer[#answer + 1], answer[#answer + 2] = l.tokens, full_in
end
return answer
