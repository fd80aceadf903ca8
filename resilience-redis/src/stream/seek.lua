-- Moves the cursor of a group.
-- ARGV: 3 where to (a position, `$`, or `ago`), 4 how long ago, 5 the group's part of keys
-- Answer: whether there is a stream
local to, ago = ARGV[3], whole(ARGV[4], 'a time', 0, MOST)
if to == 'ago' then
  to = before(text(math.max(now - ago, 0)) .. '-0')
elseif to ~= '$' then
  order(to)
end
local groups = look()
if not groups then return 0 end
begin_step()
if groups[group] then
  redis.call('XGROUP', 'SETID', LOG, group, to)
else
  redis.call('XGROUP', 'CREATE', LOG, group, to)
end
redis.call('HSET', STATE, 'format', FORMAT, 'keep', kept, 'seen', now, 'sought', now)
redis.call('HSET', META, 'g:' .. group, ARGV[5])
-- What is read again is delivered as for the first time. What is no longer in the stream stays, and what is held in the PEL is
-- taken when it is read.
if to ~= '$' then
  for _, at in ipairs(redis.call('ZRANGEBYLEX', ORDER, '(' .. order(to), '+')) do
    if message(id_of(at)) then drop(at) end
  end
end
redis.call('PEXPIRE', STATE, kept)
keep(META, kept)
return 1
