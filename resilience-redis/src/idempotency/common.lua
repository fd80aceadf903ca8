-- The record of one key; stands in every script of this folder. See resilience_core's `Record`: the same fields, the same
-- steps, the same answers. In straight lines, without tables and with as few copies of what is recorded as can be, because
-- the server's CPU is what a record costs. (Numbers that go to a command as text are not printed first.)
--
-- KEYS: 1 record (string): a head, fingerprint, owner, and then the outcome of work that is done, or else the checkpoint.
-- The head, 58 bytes: mark (249: no text begins so), phase (0 released, 1 running, 2 done, 3 unknown), previous (0 none,
-- 1 released, 2 ended, 3 unknown), whether there is a checkpoint, attempt; then doubles: fence, since, until, lease,
-- retention, expires; then the bytes of the fingerprint and of the owner. Moments are in microseconds on the server's
-- clock, leases and retentions in milliseconds.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local key = KEYS[1]

local mark, phase, previous, left, attempt, fence, since, till, lease, retention, expires, about_size, owner_size =
  249, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
-- Whether there is a record, and where what is behind its head begins, counted from zero.
local known, behind = false, 58

if read then
  if #read >= 58 then
    mark, phase, previous, left, attempt, fence, since, till, lease, retention, expires, about_size, owner_size =
      struct.unpack('<BBBBI4ddddddBB', read)
    behind = 58 + about_size + owner_size
  end
  if mark ~= 249 or #read < behind or phase > 3 or previous > 3 or left > 1 or attempt < 1
      or not (fence >= 1 and fence < 9007199254740992 and expires >= 0 and expires < 9007199254740992) then
    error(redis.error_reply('ERR no record: ' .. key))
  end
  if expires > now then
    known = true
  else
    -- What is over stays over, also when the clock steps back. The key would expire within the millisecond.
    redis.call('DEL', key)
    phase, previous, left, attempt, fence, since, till, lease, retention, about_size, owner_size, behind =
      0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 58
  end
end
