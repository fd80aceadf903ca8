-- Begins effects.
-- KEYS: 10.. the record of each effect
-- ARGV: 5.. runs of messages: their number, how long their records are kept, their positions
-- Answer, for each: 0, fence, attempt; or 1, outcome: it is done; or 2: another message is held; or 3, 1 taken or 2 gone. Or the
-- fence, if all are first attempts.
local ids, keeps, answers, at = {}, {}, {}, 5
while ARGV[at] do
  local many = whole(ARGV[at], 'a number of messages', 1, 1000)
  local ms = text(whole(ARGV[at + 1], 'a time', 1, MOST))
  for i = at + 2, at + 1 + many do
    ids[#ids + 1], keeps[#keeps + 1] = ARGV[i] or senseless('a number of messages', many), ms
  end
  at = at + 2 + many
end
if #KEYS ~= 9 + #ids then senseless('a number of keys', #KEYS) end
-- One look for all: nearly always there is none.
local are_new = KEYS[10] and redis.call('EXISTS', unpack(KEYS, 10)) == 0
read_effects(are_new)
local held = find()
for i, id in ipairs(ids) do
  if not (held and held[id]) then
    answers[i] = { 3, 2 }
    order(id)
  end
end
if not held then return answers end

local function is_held(id)
  if mine[id] or in_pel(id) then return true end
  local record = get(order(id))
  return record and record[2] ~= ''
end

local first, all_first = math.min(math.max(removed + 1, micros), EXACT - 1), true
local hows, begun = extend(ids), {}
local call, pack = redis.call, cmsgpack.pack
begin_step()
for i, id in ipairs(ids) do
  local how, key = hows[i], KEYS[9 + i]
  if how == 0 and not effects[key] and not begun[key] then
    answers[i], begun[key] = first, true
    -- As `record_effect` does, without a table to pack.
    call('SET', key, '\149' .. pack(FORMAT, id, first, 1, false), 'PX', keeps[i])
  else
    local effect, fence = effect_of(key)
    all_first = false
    if how ~= 0 then
      answers[i] = { 3, how }
    elseif effect and effect[5] then
      answers[i] = { 1, effect[5] }
    elseif begun[key] or (effect and effect[2] ~= id and is_held(effect[2])) then
      answers[i] = { 2 }
    else
      begun[key], fence = true, math.min(math.max(fence + 1, micros), EXACT - 1)
      local attempt = (effect and effect[4] or 0) + 1
      record_effect(key, { FORMAT, id, fence, attempt, false }, keeps[i])
      answers[i] = { 0, fence, attempt }
    end
  end
end
keep_group()
if all_first then return first end
for i, answer in ipairs(answers) do
  if answer == first then answers[i] = { 0, first, 1 } end
end
return answers
