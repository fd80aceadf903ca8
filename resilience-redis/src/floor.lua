-- The last argument: the latest time that the caller knows of.
local floor = tonumber(table.remove(ARGV)) or 0
