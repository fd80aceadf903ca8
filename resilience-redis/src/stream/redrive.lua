-- Makes dead letters due again, or removes them.
-- ARGV: 3 whether they are due again, 4.. positions
-- Answer: whether each was there
local answers, at = {}, {}
for i = 4, #ARGV do answers[i - 3], at[i - 3] = 0, order(ARGV[i]) end
if not summary() then return answers end
begin_step()
for i, it in ipairs(at) do
  local packed = redis.call('HGET', DEAD, it)
  if packed then
    answers[i] = 1
    redis.call('HDEL', DEAD, it)
    redis.call('ZREM', DEAD_ORDER, it)
    if ARGV[3] == '1' then
      redis.call('XACK', LOG, group, id_of(it))
      drop(it)
      put(it, { FORMAT, '', now, 0, 0, {}, cmsgpack.unpack(packed)[6] })
    end
  end
end
keep_group()
return answers
