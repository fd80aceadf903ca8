-- Acknowledges messages all of which are the consumer's, and in the PEL: what settlements nearly always are. Comes in front of
-- all others in the script that settles, because what stands there costs more than this.
if ARGV[5] == 'A' and redis.call('HEXISTS', KEYS[4], 'sought') == 0 then
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[4], 1000, ARGV[2])
  if not held.err then
    local mine, all = {}, #ARGV > 5
    for _, entry in ipairs(held) do mine[entry[1]] = true end
    for i = 6, #ARGV do all = all and mine[ARGV[i]] end
    if all then
      redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 6))
      return 0
    end
  end
end
