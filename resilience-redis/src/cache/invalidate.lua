-- Removes the value, and refuses leases for a while.
-- ARGV: 1 the head of the tombstone
invalidate()
return 1
