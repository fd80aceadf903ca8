-- The first part of a decision: the common case, one limit that has its key for itself and has kept its plan, under a
-- clock that goes forward. In a straight line, without a table or a function of its own: the server's CPU is what a limit
-- costs. What is not answered here, decide.lua does.

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local key, asked = KEYS[1], ARGV[1]
local others = call('GET', key)
if #asked == 36 and (not others or #others == 28) then
  local mark, capacity, rate, unit, cost = struct.unpack('<I4dddd', asked)
  local full = capacity * unit
  local whose, parts, at, kept = mark, full, now, unit
  if others then whose, parts, at, kept = struct.unpack('<I4ddd', others) end
  if whose == mark and kept == unit and at <= now and capacity >= 1 and rate >= 1 and unit >= 1
      and full + rate < 9007199254740992 and cost < 9007199254740992 and cost > -9007199254740992
      and capacity % 1 + rate % 1 + unit % 1 + cost % 1 == 0 then
    -- Where this is not exact it is far above `full`.
    parts = parts + (now - at) * rate
    if parts > full then parts = full end
    local outcome, wait, price = 1, 0, cost * unit
    if price > parts and cost > 0 then
      if price > full then
        outcome = -1
      else
        outcome, wait = 0, (price - parts) / rate
        -- Rounded up, for less than math.ceil takes.
        wait = wait + -wait % 1
      end
    elseif cost ~= 0 then
      parts = parts - price
      if parts > full then parts = full end
    end
    local full_in = (full - parts) / rate
    full_in = full_in + -full_in % 1
    if outcome == 1 and cost ~= 0 then
      if parts < full then
        call('SET', key, struct.pack('<I4ddd', mark, parts, now, unit), 'PX', math.ceil(full_in / 1000))
      elseif others then
        call('DEL', key)
      end
    end
    return struct.pack('<bI2ddd', outcome, 1, wait, (parts - parts % unit) / unit, full_in)
  end
end
