-- Ends deliveries.
-- KEYS: 10.. the record of each effect
-- ARGV: 5.. for each: position, and
--   a                            acknowledged
--   e fence ttl outcome          acknowledged, with an effect
--   r after reason               to be delivered again
--   g after                      given back
--   d reason                     dead
-- or 5 `A`, 6.. positions: all are acknowledged
-- or 5 `E`, 6 ttl, 7.. runs of messages: their number, fence, outcome, positions: all are acknowledged, with effects
-- Answer, for each: 0 done, 1 taken, 2 gone; or 0: all are done
local ARITY = { a = 0, e = 3, r = 2, g = 1, d = 1 }
local steps, ids, answers, at, key = {}, {}, {}, 5, 9
local function add(id, step)
  if not id or not string.find(id, '^%d+%-%d+$') then senseless('a position', id) end
  ids[#ids + 1], steps[#steps + 1], answers[#answers + 1] = id, step, 2
end
local function add_effect(id, fence, ttl, outcome)
  key = key + 1
  add(id, { 'e', whole(fence, 'a fence', 1, EXACT - 1), whole(ttl, 'a time', 1, MOST), outcome, KEYS[key] })
end
if ARGV[5] == 'A' then
  for i = 6, #ARGV do add(ARGV[i], { 'a' }) end
elseif ARGV[5] == 'E' then
  at = 7
  while ARGV[at] do
    local many = whole(ARGV[at], 'a number of messages', 1, 1000)
    if not ARGV[at + 2 + many] then senseless('a number of messages', many) end
    for i = at + 3, at + 2 + many do add_effect(ARGV[i], ARGV[at + 1], ARGV[6], ARGV[at + 2]) end
    at = at + 3 + many
  end
else
  while ARGV[at] do
    local id, kind, first = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local arity = ARITY[kind]
    if not arity or not ARGV[at + 1 + arity] then senseless('a settlement', kind) end
    if kind == 'e' then
      add_effect(id, first, ARGV[at + 3], ARGV[at + 4])
    else
      if kind == 'r' or kind == 'g' then first = whole(first, 'a wait', 0, MOST) end
      add(id, { kind, first, ARGV[at + 3] })
    end
    at = at + 2 + arity
  end
end
if #KEYS ~= key then senseless('a number of keys', #KEYS) end
read_effects()
if not find() then return acknowledged or answers end

local acks = {}
local function ack(id)
  acks[#acks + 1] = id
  released(id)
end

local function may_complete(effect, fence)
  return not effect or effect[3] == fence or (effect[3] < fence and not effect[5])
end

local function settle(id, step)
  local kind = step[1]
  local how, deliveries, record, at = hold(id)
  if how ~= 0 then return how end
  if kind == 'e' then
    local effect = effect_of(step[5])
    if not may_complete(effect, step[2]) then return 1 end
    begin_step()
    if not (effect and effect[5]) then
      local attempt = math.max(effect and effect[4] or 0, 1)
      record_effect(step[5], { FORMAT, id, step[2], attempt, step[4] }, step[3])
    end
  end
  if not record then ack(id) end
  begin_step()
  if kind == 'a' or kind == 'e' then
    if record then drop(at) end
    return 0
  end
  at = at or order(id)
  local failures = record and record[6] or {}
  local fields = record and record[7] or false
  if kind == 'd' then
    fail(failures, deliveries, consumer, step[2])
    bury(at, { FORMAT, deliveries, step[2], now, failures, fields or message(id) })
    if record then drop(at) end
    return 0
  end
  if kind == 'r' then fail(failures, deliveries, consumer, step[3]) else deliveries = math.max(deliveries - 1, 0) end
  if record then count_held(consumer, -1) end
  put(at, { FORMAT, '', now + step[2], step[2], deliveries, failures, fields })
  return 0
end
for i, id in ipairs(ids) do
  local is_done = acknowledged and acknowledged[i] == 0
  answers[i] = is_done and 0 or settle(id, steps[i])
end
if #acks > 0 then redis.call('XACK', LOG, group, unpack(acks)) end
keep_group()
return answers
