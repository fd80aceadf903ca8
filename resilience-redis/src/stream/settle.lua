-- Ends deliveries.
-- KEYS: 10.. the record of each effect
-- ARGV: 5.. for each: position, and
--   a                            acknowledged
--   e fence ttl outcome          acknowledged, with an effect
--   r after reason               to be delivered again
--   g after                      given back
--   d reason                     dead
-- or 5 `A`, 6.. positions: all are acknowledged
-- Answer, for each: 0 done, 1 taken, 2 gone; or 0: all are done
local ARITY = { a = 0, e = 3, r = 2, g = 1, d = 1 }
local steps, ids, answers, at, key = {}, {}, {}, 5, 9
local plain = ARGV[5] == 'A'
if plain then at = 6 end
while ARGV[at] do
  local kind = plain and 'a' or ARGV[at + 1]
  local arity = ARITY[kind]
  if not arity or not (plain or ARGV[at + 1 + arity]) then senseless('a settlement', kind) end
  if not string.find(ARGV[at], '^%d+%-%d+$') then senseless('a position', ARGV[at]) end
  local step = { kind, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4] }
  if kind == 'e' then
    key = key + 1
    step = { kind, whole(step[2], 'a fence', 1, EXACT - 1), whole(step[3], 'a time', 1, MOST), step[4], KEYS[key] }
  elseif kind == 'r' or kind == 'g' then
    step[2] = whole(step[2], 'a wait', 0, MOST)
  end
  ids[#ids + 1], steps[#steps + 1], answers[#answers + 1] = ARGV[at], step, 2
  at = at + (plain and 1 or 2 + arity)
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
