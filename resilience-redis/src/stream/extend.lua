-- Begins the lease of messages again.
-- ARGV: 3.. positions
-- Answer: 0 held, 1 taken, 2 gone, for each
local ids, answers = {}, {}
for i = 3, #ARGV do
  order(ARGV[i])
  ids[i - 2], answers[i - 2] = ARGV[i], 2
end
if not summary() then return answers end
begin_step()
find(ids)
answers = extend(ids)
seen()
keep_group()
return answers
