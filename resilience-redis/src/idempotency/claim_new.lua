-- ARGV: the record of a new key as it is behind its fence: no moment since, then, where others have a moment, how the claim
-- is made (takeover: 0 never, 1 ended, 2 any; and 4 if the caller's process is subscribed), lease, retention, sizes, fingerprint,
-- owner. (One argument, because each costs the server a tenth of a replay.)
-- Answer: the fence, of a key that is new | the record of work that is done (read_full.lua) | or a byte and three doubles, alone
-- or with the quoted bytes: 0 new or 1 mine, fence, attempt, previous, "checkpoint" | 2 busy, remaining | 4 mismatch
-- | 5 unknown, fence, attempt, age
local asked = ARGV[1]
if not read then
  local keep_ms = struct.unpack('<d', asked, 25)
  redis.call('SET', key, '\249\1\0\0\1\0\0\0' .. struct.pack('<d', now) .. asked, 'PX', keep_ms)
  return now
end
