-- Begins a lease again. ARGV: fence, lease. Answer: 1, or 0: it is another's.
local fence = whole(ARGV[1], 'fence', 1, EXACT - 1)
local lease = whole(ARGV[2], 'lease', 1, MOST)
local state = read_state()
if not state or state.fence ~= fence then return 0 end
local now, lead = time_of(state)
begin_in_any_case()
state.ends = now + lease
save_state(state, now, lead)
return 1
