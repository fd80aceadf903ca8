-- Comes behind time.lua: what is over counts as absent. A moment further ahead than its own length was noted before the
-- clock was set back: it is over as well, and a value stale.
local left = till - now
if left < 0 or left > length + SLACK then left = 0 end
if left > length then left = length end
if left == 0 then
  token = NONE
  if kind >= 3 then kind = 0 end
end
local age = now - stored_at
if age < -SLACK then age = fresh end
if age < 0 then age = 0 end
if is_value and age >= keep then kind, is_value = 0, false end
