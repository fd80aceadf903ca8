-- The generic cell rate algorithm as the Go library redis_rate runs it, rewritten: time in floating-point seconds
-- since 2017, one number a key, an expiry in whole seconds, arguments and fractions as text.
--
-- KEYS: the limit. ARGV: burst, tokens per period, period in seconds, cost
-- Answer: tokens taken, tokens left, seconds to wait (-1: none), seconds until it is full

local interval = ARGV[3] / ARGV[2]
local tolerance = interval * ARGV[1]
local cost = tonumber(ARGV[4])

local time = redis.call('TIME')
local now = (time[1] - 1483228800) + time[2] / 1000000

local arrival = redis.call('GET', KEYS[1])
if arrival then arrival = tonumber(arrival) else arrival = now end
arrival = math.max(arrival, now)

local new_arrival = arrival + interval * cost
local ahead = now - (new_arrival - tolerance)
local remaining = ahead / interval
if remaining < 0 then
  return { 0, 0, tostring(-ahead), tostring(arrival - now) }
end

local full_in = new_arrival - now
if full_in > 0 then
  redis.call('SET', KEYS[1], new_arrival, 'EX', math.ceil(full_in))
end
return { cost, remaining, tostring(-1), tostring(full_in) }
