-- Acknowledges messages: what settlements nearly always are. Comes in front of all others in the script that settles, because
-- what stands there costs more than this.
--
-- A look at each message in the PEL would cost more than the rest. Between the lowest and the highest of these there is usually
-- none that another consumer holds: then whatever is in the PEL there is the consumer's own, and XACK tells whether it was there.
local acknowledged
if ARGV[5] == 'A' then
  local call, log, group, consumer = redis.call, KEYS[1], ARGV[1], ARGV[2]
  local state = call('HMGET', KEYS[4], 'sought', 'format')
  local held = not state[1] and (state[2] or '1') == '1' and redis.pcall('XPENDING', log, group)
  local holders = held and not held.err and (held[4] or {})
  local is_alone = holders and #holders <= 16
  for i = 1, is_alone and #holders or 0 do
    local other = holders[i][1]
    is_alone = is_alone and (other == consumer or #call('XPENDING', log, group, ARGV[3], ARGV[4], 1, other) == 0)
  end
  for i = 6, #ARGV do is_alone = is_alone and string.find(ARGV[i], '^%d+%-%d+$') end
  if is_alone then
    -- Comes before the first write.
    local is_plain = call('HLEN', KEYS[5]) == 0
    local answers, all = {}, true
    for i = 6, #ARGV do
      local is_done = call('XACK', log, group, ARGV[i]) == 1
      answers[i - 5] = is_done and 0 or 2
      all = all and is_done
    end
    if all then return 0 end
    if is_plain then return answers end
    -- The others may have been delivered more than once.
    acknowledged = answers
  elseif holders then
    local mine, all = {}, #ARGV > 5
    for _, entry in ipairs(call('XPENDING', log, group, ARGV[3], ARGV[4], 1000, consumer)) do mine[entry[1]] = true end
    for i = 6, #ARGV do all = all and mine[ARGV[i]] end
    if all then
      call('XACK', log, group, unpack(ARGV, 6))
      return 0
    end
  end
end
