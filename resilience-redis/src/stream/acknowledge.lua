-- Acknowledges messages all of which are the consumer's, and in the PEL: what settlements nearly always are. Comes in front of
-- all others in the script that settles, because what stands there costs more than this.
if not KEYS[10] then
  local ids, answers, all = {}, {}, #ARGV > 4 and redis.call('HEXISTS', KEYS[4], 'sought') == 0
  for i = 5, #ARGV, 2 do
    all = all and ARGV[i + 1] == 'a'
    ids[#ids + 1], answers[#answers + 1] = ARGV[i], 0
  end
  local held = all and redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[4], 1000, ARGV[2]) or { err = true }
  if not held.err then
    local mine = {}
    for _, entry in ipairs(held) do mine[entry[1]] = true end
    for _, id in ipairs(ids) do all = all and mine[id] end
    if all then
      redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
      return answers
    end
  end
end
