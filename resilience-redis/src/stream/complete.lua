-- Records effects and acknowledges their messages: what settlements of consumers with effects nearly always are. Comes in front of
-- what does the same for any settlement, because what stands there costs more than this. Nothing is written unless all are done.
--
-- A record that is running and one that is done differ in the last part only, `false` or the outcome: no record is unpacked.
local function complete_all()
  local call, pack, sub, find, byte = redis.call, cmsgpack.pack, string.sub, string.find, string.byte
  local log, group, ttl = KEYS[1], ARGV[1], ARGV[6]
  if not find(ttl, '^[1-9]%d*$') or #ttl > 12 then return nil end
  local state = call('HMGET', KEYS[4], 'sought', 'format', 'keep')
  if state[1] or (state[2] or '1') ~= '1' or call('HEXISTS', KEYS[2], 'r:' .. group) == 1 then return nil end
  local held = redis.pcall('XPENDING', log, group, ARGV[3], ARGV[4], 1000, ARGV[2])
  if held.err then return nil end
  local mine = {}
  for i = 1, #held do mine[held[i][1]] = true end
  local records, ids, number, at = call('MGET', unpack(KEYS, 10)), {}, 0, 7
  while ARGV[at] do
    local many, fence = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    if not (many and many >= 1 and fence and ARGV[at + 2]) then return nil end
    local outcome = pack(ARGV[at + 2])
    for i = at + 3, at + 2 + many do
      number = number + 1
      local id, record = ARGV[i], records[number]
      if not (mine[id] and record) then return nil end
      -- The fence, and with it the position; and that there is no outcome.
      local running = pack(1, id, fence)
      if #record ~= #running + 3 or find(record, running, 2, true) ~= 2 or byte(record, -1) ~= 194 then return nil end
      mine[id], ids[number], records[number] = nil, id, sub(record, 1, -2) .. outcome
    end
    at = at + 3 + many
  end
  if #KEYS ~= 9 + number then return nil end
  -- Comes before the other writes, as `begin_step` does.
  call('PEXPIRE', KEYS[4], state[3] or '86400000')
  for i = 1, number do call('SET', KEYS[9 + i], records[i], 'PX', ttl) end
  call('XACK', log, group, unpack(ids))
  return 0
end
if ARGV[5] == 'E' and complete_all() then return 0 end
