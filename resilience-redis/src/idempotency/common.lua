-- The record of one key; stands in front of every script of this folder. See resilience_core's `Record`: the same
-- fields, the same steps, the same answers. In straight lines and with packed numbers, because the server's CPU is what
-- a record costs.
--
-- KEYS: 1 record (hash): state, owner, fingerprint, checkpoint, outcome. The state is packed, because it changes as a
-- whole: phase (0 released, 1 running, 2 done, 3 unknown), previous (0 none, 1 released, 2 ended, 3 unknown), whether
-- there is a checkpoint, attempt; then doubles: fence, since, until, lease, retention, expires. Moments are in
-- microseconds on the server's clock, leases and retentions in milliseconds.
-- ARGV: 1 channel, then what the script says.

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local key = KEYS[1]

local function refuse(what) error(redis.error_reply('ERR ' .. what .. ': ' .. key)) end

local phase, previous, left, attempt, fence, since, till, lease, retention, expires = 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
local owner, fingerprint = '', ''
-- Whether there is a record, and whether whoever waits has to be told.
local known, news = false, false

local read = call('HMGET', key, 'state', 'owner', 'fingerprint')
if read[1] then
  if #read[1] ~= 55 or not read[2] or not read[3] then refuse('no record') end
  phase, previous, left, attempt, fence, since, till, lease, retention, expires =
    struct.unpack('<BBBI4dddddd', read[1])
  if expires > now then
    owner, fingerprint, known = read[2], read[3], true
  else
    -- What is over stays over, also when the clock steps back. The key would expire within the millisecond.
    call('DEL', key)
    phase, previous, left, attempt, fence, since, till, lease, retention = 0, 0, 0, 0, 0, 0, 0, 0, 0
  end
end

-- Writes the state, and further fields and values. A server that is out of memory refuses what would take more of it,
-- but not in the middle of a script: beginning with the expiry, whatever was granted can be ended even then, and only
-- new keys are refused.
local function save(...)
  local ms = math.ceil((expires - now) / 1000)
  if known then call('PEXPIRE', key, ms) end
  call('HSET', key, 'state', struct.pack('<BBBI4dddddd', phase, previous, left, attempt, fence, since, till, lease,
    retention, expires), ...)
  if not known then call('PEXPIRE', key, ms) end
  -- Without the right to publish, whoever waits looks again by themselves.
  if news then redis.pcall('PUBLISH', ARGV[1], phase) end
end
