-- Ends a write.
-- ARGV: 1 the head of the tombstone that is left when the value is not stored, with the token of the write; 2 none, or the value
-- Answer: 1 stored, 0 invalidated
local value, keep_ms = ARGV[2], 0
if value then keep_ms = check(value) end
if is_value and version == own_token then return 1 end
