-- Stores a value that the caller knows to be the latest.
-- ARGV: 1 the value
-- Answer: 1 stored, 0 a write is in progress
local keep_ms = check(asked)
if kind >= 4 then return 0 end
store(asked, keep_ms)
return 1
