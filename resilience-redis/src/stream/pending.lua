-- Messages that are held or wait, in order.
-- ARGV: 3 position of the first one, 4 maximum number
-- Answer: position, consumer (empty: it waits), deliveries, milliseconds left, for each
local from, max = order(ARGV[3]), whole(ARGV[4], 'a number of messages', 0, 1000)
if max == 0 or not summary() then return {} end
local found, known, leases = {}, {}, {}
for _, it in ipairs(redis.call('XPENDING', LOG, group, ARGV[3], '+', max)) do
  local at, name = order(it[1]), it[2]
  leases[name] = leases[name] or tonumber(redis.call('HGET', STATE, 'c:' .. name) or '') or 30000
  known[at] = true
  found[#found + 1] = { at, name, it[4], math.max(leases[name] - it[3], 0) }
end
for _, at in ipairs(redis.call('ZRANGEBYLEX', ORDER, '[' .. from, '+', 'LIMIT', 0, max)) do
  local record = not known[at] and get(at)
  if record then
    local left = math.max(math.min(record[3] - now, record[4]), 0)
    found[#found + 1] = { at, record[2], record[5], left }
  end
end
table.sort(found, function(a, b) return a[1] < b[1] end)
for i = 1, #found do
  found[i][1] = id_of(found[i][1])
  if i > max then found[i] = nil end
end
return found
