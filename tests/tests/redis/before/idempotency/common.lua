-- The record of one key; part of every script of this folder. Fields, steps and answers are those of resilience_core's
-- `Record`. The server's CPU is what a record costs: hence straight lines without tables, as few commands as
-- can be, and no more than one string as long as an outcome, because Redis' Lua hashes every byte of every new string.
-- (Numbers that go to a command as text are not printed first.)
--
-- KEYS: 1 record (string): a head, fingerprint, owner, and then the outcome of work that is done, or else the checkpoint.
-- The head, 51 bytes: mark (249: no text begins so), phase (0 released, 1 running, 2 done, 3 unknown), previous (0 none,
-- 1 released, 2 ended, 3 unknown), whether there is a checkpoint, attempt; then doubles: fence, since, until, lease,
-- retention; then the bytes of the fingerprint and of the owner, and whether a process is subscribed.
-- Moments are in microseconds on the server's clock, leases and retentions in milliseconds. A record that is new has no
-- moment but its fence, from which the other two follow (in the place of `until` it has what claim.lua was asked). A record
-- expires with the key's TTL.

local key = KEYS[1]
local mark, phase, previous, left, attempt, fence, since, till, lease, retention, about_size, owner_size, heard =
  249, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
-- Where what is behind the names begins, counted from zero.
local behind = 51

if read then
  if #read >= 51 then
    mark, phase, previous, left, attempt, fence, since, till, lease, retention, about_size, owner_size, heard =
      struct.unpack('<BBBBI4dddddBBB', read)
    behind = 51 + about_size + owner_size
    if since == 0 then since, till = fence, fence + lease * 1000 end
  end
  if mark ~= 249 or #read < behind or phase > 3 or previous > 3 or left > 1 or heard > 1 or attempt < 1
      or not (fence >= 1 and fence < 9007199254740992) then
    error(redis.error_reply('ERR no record: ' .. key))
  end
end
