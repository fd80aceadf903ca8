-- The reports of several breakers on one server. `report` is report.lua, as a function of its KEYS and ARGV.
-- KEYS: 7 for each breaker. ARGV: 12 for each breaker, as report.lua takes them.
-- Answer: for each breaker the list that report.lua answers, or the text of its error. One that fails does not stop the
-- others.
local PARTS, ARGS = 7, 12
local answers = {}
for i = 1, #KEYS / PARTS do
  local keys, args = {}, {}
  for part = 1, PARTS do keys[part] = KEYS[(i - 1) * PARTS + part] end
  for arg = 1, ARGS do args[arg] = ARGV[(i - 1) * ARGS + arg] end
  local done, answer = pcall(report, keys, args)
  if done and not answer.err then
    answers[i] = answer
  else
    -- Since Redis 7 errors are tables, before they are text.
    answers[i] = type(answer) == 'table' and answer.err or tostring(answer)
  end
end
return answers
