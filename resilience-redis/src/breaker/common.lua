-- The record of one breaker; stands in front of every script of this folder, behind shown.lua and record_time.lua. See
-- resilience_core's `Record`: the same fields, the same steps. No policy here: merge, compare, set. Moments are in
-- milliseconds of the record's own time.
--
-- KEYS: 1 state (hash), 2 window (hash), 3 live (zset), 4 failing (zset), 5 sequence (hash), 6 leases (zset),
-- 7 local (hash: instance, `format:state:reported at:voter`), 8 log (stream); reports have no 8

local BUCKETS = 10
-- A record outlives its instances for a day; an order in force, for a month.
local KEEP, KEEP_ORDER = 86400000, 2592000000

-- The format of records and messages. A later version adds fields to it, or raises this number.
local FORMAT = 1
-- The time of a record is noted at most this often.
local NOTED = 100

local function number(value, name)
  local n = tonumber(value)
  if not n or n < 0 or n ~= math.floor(n) or n >= 9007199254740992 then
    error(redis.error_reply('ERR ' .. name .. ' is no whole number below 2^53: ' .. tostring(value)))
  end
  return n
end

-- All reads come first: a key of another type ends the script before it wrote anything.
local raw = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'stage', 'since', 'until', 'trips', 'by', 'cause',
  'probes_ok', 'probes_failed', 'order', 'order_reason', 'order_by', 'order_until', 'bucket_ms',
  'at', 'lead', 'format')
local window = redis.call('HGETALL', KEYS[2])
local reporters, voters = redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4])
redis.call('HLEN', KEYS[5])
redis.call('ZCARD', KEYS[6])

local r = {
  epoch = tonumber(raw[1] or 0), state = raw[2] or 'closed', stage = tonumber(raw[3] or 0),
  since = tonumber(raw[4] or 0), till = tonumber(raw[5] or 0), trips = tonumber(raw[6] or 0),
  by = raw[7] or '', cause = raw[8] or '',
  probes_ok = tonumber(raw[9] or 0), probes_failed = tonumber(raw[10] or 0),
  order = raw[11] or '', order_reason = raw[12] or '', order_by = raw[13] or '',
  order_until = tonumber(raw[14] or 0), bucket_ms = tonumber(raw[15] or 0),
}
local read_epoch = r.epoch
if tonumber(raw[18] or FORMAT) > FORMAT then
  error(redis.error_reply('ERR a record of a later format: ' .. raw[18]))
end
local noted_at, noted_lead = tonumber(raw[16] or 0), tonumber(raw[17] or 0)
local now, lead = record_time(math.floor(shown / 1000), noted_at, noted_lead, 0, 0)

local function ordered()
  return r.order ~= '' and (r.order_until == 0 or r.order_until > now)
end

local function next_epoch()
  return math.max(r.epoch + 1, now)
end

local function forget_probes()
  redis.call('DEL', KEYS[6])
  r.probes_ok, r.probes_failed = 0, 0
end

local function enter(state, stage, lasting)
  r.epoch, r.state, r.stage, r.since = next_epoch(), state, stage, now
  r.till = lasting == 0 and 0 or now + lasting
  forget_probes()
  redis.call('DEL', KEYS[2], KEYS[4])
  window = {}
end

local function save()
  redis.call('HSET', KEYS[1], 'epoch', r.epoch, 'state', r.state, 'stage', r.stage, 'since', r.since,
    'until', r.till, 'trips', r.trips, 'by', r.by, 'cause', r.cause, 'probes_ok', r.probes_ok,
    'probes_failed', r.probes_failed, 'order', r.order, 'order_reason', r.order_reason, 'order_by', r.order_by,
    'order_until', r.order_until, 'bucket_ms', r.bucket_ms)
end

-- Never shortens: what one caller needs for long must not go with what another needs briefly.
local function extend(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

-- The end of every script that has written.
local function keep()
  if lead ~= noted_lead or now - noted_at >= NOTED then
    redis.call('HSET', KEYS[1], 'at', now, 'lead', lead, 'format', FORMAT)
    noted_at, noted_lead = now, lead
  end
  extend(KEYS[1], ordered() and KEEP_ORDER or KEEP)
end

local function sums()
  local success, failure, slow = 0, 0, 0
  if r.bucket_ms > 0 then
    local oldest = math.floor(now / r.bucket_ms) + 1 - BUCKETS
    for i = 1, #window, 2 do
      local bucket, kind = string.match(window[i], '^(%d+):(%a)$')
      if bucket and tonumber(bucket) >= oldest then
        local count = tonumber(window[i + 1])
        if kind == 's' then success = success + count
        elseif kind == 'f' then failure = failure + count
        else slow = slow + count end
      end
    end
  end
  return success, failure, slow
end

local function view()
  local success, failure, slow = sums()
  local order_left = -1
  if ordered() and r.order_until > 0 then order_left = r.order_until - now end
  return {
    string.format('%.0f', r.epoch), r.state, r.stage, math.max(r.till - now, 0), math.max(now - r.since, 0), r.trips,
    success, failure, slow,
    redis.call('ZCOUNT', KEYS[3], '(' .. now, '+inf'), redis.call('ZCOUNT', KEYS[4], '(' .. now, '+inf'),
    redis.call('ZCOUNT', KEYS[6], '(' .. now, '+inf'), r.probes_ok, r.probes_failed,
    r.by, r.cause,
    ordered() and r.order or '', r.order_reason, r.order_by, order_left, FORMAT,
  }
end

-- The answer: whether it was done, and the view; a new epoch is told to all who listen.
local function answer(done)
  -- A step of the clock that only a view has seen. It may have no right to write.
  if lead ~= noted_lead then redis.pcall('HSET', KEYS[1], 'at', now, 'lead', lead) end
  local seen = view()
  if r.epoch ~= read_epoch then
    -- All is written: who may not publish has told those who ask.
    redis.pcall('PUBLISH', ARGV[1], cjson.encode(seen))
  end
  table.insert(seen, 1, done)
  return seen
end
