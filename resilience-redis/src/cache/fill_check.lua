-- Stores what the holder of a lease has loaded.
-- ARGV: 1 the value; its version is the token of the lease
-- Answer: 1 stored, 0 the lease is gone
if is_value and version == own_version then return 1 end
if kind > 2 or token == NONE or token ~= own_version then return 0 end
