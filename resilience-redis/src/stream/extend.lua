-- Begins the lease of messages again.
-- ARGV: 5.. positions
-- Answer: 0 held, 1 taken, 2 gone, for each
local ids, answers = {}, {}
for i = 5, #ARGV do
  if not string.find(ARGV[i], '^%d+%-%d+$') then senseless('a position', ARGV[i]) end
  ids[i - 4], answers[i - 4] = ARGV[i], 2
end
if not find() then return answers end
answers = extend(ids)
if lease then
  begin_step()
  seen()
end
keep_group()
return answers
