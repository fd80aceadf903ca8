-- What both scripts stand on. They give resilience_core::limit::machine's answers, but count a bucket in parts of a
-- token, tokens and rest together: `unit` of them are a token, and `rate` come every microsecond. Every number is a
-- whole one below 2^53, and so is every sum and product that is not merely far too large: `Quota` sees to it when it is
-- built. Remainders and rounded quotients of such numbers are exact.
--
-- A bucket is three packed doubles: parts, microsecond, unit. A missing one is full.

-- The parts of a bucket whose unit was another one. The rest of a token is rounded down to the new unit.
local function converted(key, parts, kept, unit, capacity)
  if not (kept >= 1 and kept < 9007199254740992 and kept % 1 == 0 and parts >= 0 and parts % 1 == 0) then
    error(redis.error_reply('ERR no bucket: ' .. key))
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
