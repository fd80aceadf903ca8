-- The generations of tags; comes first in the scripts about them.
--
-- KEYS: tags (string): the generation, and, if the tag was ever invalidated, `:` and when; both in microseconds of the server's
-- clock. (A later version may add to it, behind another `:`.)
-- ARGV: 1 for how long they are kept at least, in milliseconds
local keep = tonumber(ARGV[1])
if not (keep and keep >= 0 and keep <= 1000000000000 and keep % 1 == 0) then
  error(redis.error_reply('ERR a time that makes no sense: ' .. KEYS[1]))
end
-- Longer, so that a tag in use is not written each time it is read: every process that has read it would get a report of the change.
local ttl = 2 * keep + 1000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Generation and invalidation of a tag. What is no generation counts as absent, and is replaced.
local function read(key)
  local text = redis.pcall('GET', key)
  if type(text) == 'table' then
    if not string.find(text.err, 'WRONGTYPE', 1, true) then redis.call('GET', key) end
    return
  end
  if not text then return end
  local number, at = string.match(text, '^(%d+):?(%d*)')
  number = tonumber(number)
  if number and number >= 1 and number < 9007199254740991 then return number, tonumber(at) end
end
