-- One decision about one limit. In a straight line and without a table of its own: the server's CPU is what a limit
-- costs. Several limits are decided by decide_all.lua. In front of this stands convert.lua.
--
-- KEYS: the bucket
-- ARGV: four packed doubles: capacity, rate, unit, cost
-- Answer, packed doubles: outcome (1 admitted, 0 wait, -1 impossible), binding (1), microseconds to wait, tokens left,
-- microseconds until it is full

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local key = KEYS[1]
local capacity, rate, unit, cost = struct.unpack('<dddd', ARGV[1])
local full = capacity * unit
if not (capacity >= 1 and rate >= 1 and unit >= 1 and full + rate < 9007199254740992
    and cost < 9007199254740992 and cost > -9007199254740992
    and capacity % 1 + rate % 1 + unit % 1 + cost % 1 == 0) then
  error(redis.error_reply('ERR quota or cost out of range: ' .. key))
end

local parts, at, behind, changed = full, now, 0, false
local packed = redis.call('GET', key)
if packed then
  if #packed ~= 24 then error(redis.error_reply('ERR no bucket: ' .. key)) end
  local kept
  parts, at, kept = struct.unpack('<ddd', packed)
  if kept ~= unit then parts = converted(key, parts, kept, unit, capacity) end
  if at > now then
    -- The machine's TOLERATED_STEP.
    if at - now > 100000 then at, changed = now, true end
    behind = at - now
  else
    -- Where this is not exact it is far above `full`.
    parts, at = parts + (now - at) * rate, now
  end
  if parts > full then parts = full end
end

local outcome, wait, price = 1, 0, cost * unit
if price > parts and cost > 0 then
  if price > full then
    outcome = -1
  else
    outcome, wait = 0, math.ceil((price - parts) / rate) + behind
  end
elseif cost ~= 0 then
  parts, changed = parts - price, true
  if parts > full then parts = full end
end

local full_in = 0
if parts < full then full_in = math.ceil((full - parts) / rate) + behind end
if changed then
  if parts < full then
    redis.call('SET', key, struct.pack('<ddd', parts, at, unit), 'PX', math.ceil(full_in / 1000))
  elseif packed then
    redis.call('DEL', key)
  end
end
return struct.pack('<ddddd', outcome, 1, wait, (parts - parts % unit) / unit, full_in)
