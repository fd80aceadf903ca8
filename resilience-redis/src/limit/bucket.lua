-- What a decision stands on. It gives resilience_core::limit::machine's answers, but counts a bucket in parts of a
-- token, tokens and rest together: `unit` of them are a token, and `rate` come every microsecond. Every number is a
-- whole one below 2^53, and so is every sum and product that is not merely far too large: `Quota` sees to it when it is
-- built. Remainders and rounded quotients of such numbers are exact.
--
-- The key of a subject holds its buckets, one after the other: the mark of the limit (four bytes), and three doubles:
-- parts, microsecond, unit. One that is missing is full. A decision leaves those of other limits as they are. (A length that is
-- no multiple of 28 is another format, and an error.)
--
-- Microseconds are the record's own: resilience_core's `RecordClock`. After the clock was set back, a bucket with this mark
-- comes first: in place of the parts, how far the record is ahead of the clock. Instances of earlier versions take it for that
-- of another limit.
local CLOCK = 0
-- So far ahead at most does a key outlive what is in it: a clock that is set forward again must find it.
local AHEAD = 86400000000

-- The time of the record, its lead, the lead that was kept, and the buckets without that of the clock.
local function moved(packed, key)
  if #packed % 28 ~= 0 then error(redis.error_reply('ERR no buckets: ' .. key)) end
  local at, kept, clock = 0, 0, nil
  for from = 1, #packed, 28 do
    local mark, parts, micros = struct.unpack('<I4dd', packed, from)
    if mark == CLOCK then kept, clock = parts, from end
    if micros > at then at = micros end
  end
  if clock then packed = string.sub(packed, 1, clock - 1) .. string.sub(packed, clock + 28) end
  local now, lead = record_time(now, at, kept, 0, 0)
  return now, lead, kept, packed
end

-- What else is kept is bounded: those that were decided about most recently, as many as fit into a number of bytes.
local OTHERS = 28 * 32

-- What is left of packed buckets without the one with this mark, and that one.
local function without(mark, packed)
  for from = 1, #packed, 28 do
    if struct.unpack('<I4', packed, from) == mark then
      return string.sub(packed, 1, from - 1) .. string.sub(packed, from + 28), string.sub(packed, from, from + 27)
    end
  end
  return packed
end

-- Writes buckets, with the microseconds until they are full, in front of those of other limits. When those are full,
-- is not known here: the key lives no shorter than it would have.
local function keep(key, packed, full_in, others, now, lead, write)
  local ttl = math.max(math.ceil((full_in + math.min(lead, AHEAD)) / 1000), 1)
  if others ~= '' then
    ttl = math.max(ttl, call('PTTL', key))
    packed = packed .. string.sub(others, 1, OTHERS)
  end
  if packed == '' then return write('DEL', key) end
  if lead > 0 then packed = struct.pack('<I4ddd', CLOCK, lead, now, 1) .. packed end
  write('SET', key, packed, 'PX', ttl)
end

-- The parts of a bucket whose unit was another one. The rest of a token is rounded down to the new unit.
local function converted(key, parts, kept, unit, capacity)
  if not (kept >= 1 and kept < 9007199254740992 and kept % 1 == 0 and parts >= 0 and parts % 1 == 0) then
    error(redis.error_reply('ERR no buckets: ' .. key))
  end
  local rest = parts % kept
  local tokens = (parts - rest) / kept
  if tokens >= capacity then return capacity * unit end
  if rest * unit < 9007199254740992 then return tokens * unit + math.floor(rest * unit / kept) end
  -- floor(rest * unit / kept), of a product with more bits than a double: bit by bit, from the highest.
  local bit = 1
  while bit <= unit do bit = bit * 2 end
  local quotient, left, bits = 0, 0, unit
  while bit > 1 do
    bit = bit / 2
    quotient = quotient * 2
    if left >= kept - left then
      left = left - (kept - left)
      quotient = quotient + 1
    else
      left = left + left
    end
    if bits >= bit then
      bits = bits - bit
      if left >= kept - rest then
        left = left - (kept - rest)
        quotient = quotient + 1
      else
        left = left + rest
      end
    end
  end
  return tokens * unit + quotient
end
