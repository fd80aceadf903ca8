-- The state of a shard.
-- Answer: nothing: there is none; or incarnation, version, entries, time, since when the oldest entry is not sunk or -1, dead letters,
-- holder, how long its lease lasts, how long the shard pauses
local state = read_state()
if not state then return false end
local now = time_of(state)
local oldest = redis.call('ZRANGE', SINCE, 0, 0, 'WITHSCORES')[2]
return {
  state.incarnation,
  state.version,
  redis.call('HLEN', ENTRIES),
  now,
  oldest and tonumber(oldest) or -1,
  redis.call('HLEN', DEAD),
  state.holder,
  math.max(state.ends - now, 0),
  math.max(state.paused - now, 0),
}
