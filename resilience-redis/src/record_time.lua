-- The time of a record, and how far that is ahead of the clock, from those that it kept: resilience_core's `RecordClock`.
-- `floor` is the latest time that the caller knows of, for a record that was lost, or not changed for long. It counts when both
-- are behind it by more than `second`: clocks of several nodes differ.
local function record_time(shown, at, lead, floor, second)
  if floor > at + second and floor > shown + second then at = floor end
  if shown >= at then return shown, 0 end
  if shown + lead < at then lead = at - shown end
  return shown + lead, lead
end
