-- Begins effects.
-- KEYS: 10.. the record of each effect
-- ARGV: 5.. for each: position, how long the record is kept
-- Answer, for each: 0, fence, attempt; or 1, outcome: it is done; or 2: another message is held; or 3, 1 taken or 2 gone
local ids, keeps, answers = {}, {}, {}
for i = 5, #ARGV, 2 do
  if not string.find(ARGV[i], '^%d+%-%d+$') then senseless('a position', ARGV[i]) end
  ids[#ids + 1], keeps[#keeps + 1] = ARGV[i], whole(ARGV[i + 1], 'a time', 1, MOST)
  answers[#answers + 1] = { 3, 2 }
end
if #KEYS ~= 9 + #ids then senseless('a number of keys', #KEYS) end
read_effects()
if not find() then return answers end

local function is_held(id)
  if mine[id] or in_pel(id) then return true end
  local record = get(order(id))
  return record and record[2] ~= ''
end

for i, how in ipairs(extend(ids)) do
  local key = KEYS[9 + i]
  local effect, fence = effect_of(key)
  if how ~= 0 then
    answers[i] = { 3, how }
  elseif effect and effect[5] then
    answers[i] = { 1, effect[5] }
  elseif effect and effect[2] ~= ids[i] and is_held(effect[2]) then
    answers[i] = { 2 }
  else
    begin_step()
    fence = math.min(math.max(fence + 1, micros), EXACT - 1)
    local attempt = (effect and effect[4] or 0) + 1
    record_effect(key, { FORMAT, ids[i], fence, attempt, false }, keeps[i])
    answers[i] = { 0, fence, attempt }
  end
end
keep_group()
return answers
