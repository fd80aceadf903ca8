-- The time of a record, and how far that is ahead of the clock, from those that it kept: resilience_core's `RecordClock`.
-- `floor` is the latest time that the caller knows of, for a record that was lost; it counts when the clock is behind it by more
-- than `second`, since clocks of several nodes differ.
local function record_time(shown, at, lead, floor, second)
  if floor > at and floor > shown + second then at = floor end
  if shown >= at then return shown, 0 end
  if shown + lead < at then lead = at - shown end
  return shown + lead, lead
end
