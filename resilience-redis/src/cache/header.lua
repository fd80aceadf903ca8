-- The record of one key; comes first in every script about one. Fields, steps and answers are those of resilience_core's
-- `cache::record::Record`. Straight lines and few commands, because the server's CPU is what a record costs; what is behind the
-- head is neither read nor copied here, whatever its size, unless it is the answer.
--
-- KEYS: 1 the record (string): a head, tags, body. The head, 64 bytes (numbers are little-endian):
--    0  mark: 250, the format of a record; no text begins so
--    1  size of the head: a later version may add to it
--    2  kind: 0 nothing (a lease alone), 1 a value, 2 a value that is known not to exist, 3 a tombstone, 4 a write in
--       progress, 5 several of them
--    3  number of tags
--    4  hash of the key (8 bytes): what proves that an answer without a nonce belongs to the key
--   12  version of the value (8 bytes)
--   20  stored at; 26 how long it is fresh, 32 kept, and 38 how long it took to load (6 bytes each)
--   44  token of the lease, or of the one write (8 bytes; zeros: none)
--   52  until when the lease, the tombstone or the writes last; 58 the length of that (6 bytes each)
-- A tag: size of its name (a byte), name, generation (8 bytes). Moments are milliseconds of the server's clock.
-- ARGV: 1 the head that the step writes or refers to, without moments, with what is behind it
local key, asked = KEYS[1], ARGV[1]
local NONE, SLACK, MOST = '\0\0\0\0\0\0\0\0', 1000, 1000000000000

local hash, own_version, own_fresh, own_keep, own_token, own_length
if #asked >= 64 then
  hash, own_version, own_fresh, own_keep, own_token, own_length = struct.unpack('<c8c8xxxxxxI6I6xxxxxxc8xxxxxxI6', asked, 5)
end
if not hash or string.byte(asked) ~= 250 or own_fresh > own_keep or own_keep > MOST or own_length > MOST then
  error(redis.error_reply('ERR a step that makes no sense: ' .. key))
end

-- A value of another type, in another format, or that was copied from another key counts as no record, and is replaced.
local head = redis.pcall('GETRANGE', key, '0', '63')
local is_there = head ~= ''
local kind, version, stored_at, fresh, keep, token, till, length = 0, NONE, 0, 0, 0, NONE, 0, 0
if type(head) == 'table' then
  -- Any other error is raised.
  if not string.find(head.err, 'WRONGTYPE', 1, true) then redis.call('GETRANGE', key, '0', '63') end
elseif #head == 64 then
  local mark, size, sort, of = struct.unpack('<BBBxc8', head)
  if mark == 250 and size >= 64 and sort <= 5 and of == hash then
    kind, version, stored_at, fresh, keep, token, till, length =
      sort, struct.unpack('<c8I6I6I6xxxxxxc8I6I6', head, 13)
  end
end
local is_value = kind == 1 or kind == 2
