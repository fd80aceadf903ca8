-- The work is done. The holder's number: for how long the outcome is kept; its bytes: the outcome. The holder's record is the
-- one that is kept, head and all, so that no copy is made of it here. When the work was done is therefore the holder's idea
-- of the server's time: it makes the outcome's age, and nothing is decided by it. The first outcome stays, should the holder
-- say so again
if phase == 0 then return 'over' end
if phase == 2 then return answer end
if string.byte(ours, 2) ~= 2 then error(redis.error_reply('ERR an outcome that makes no sense: ' .. key)) end
-- See save.lua.
if read then redis.call('PEXPIRE', key, ARGV[2]) end
redis.call('SET', key, ours, 'PX', ARGV[2])
if heard == 1 then redis.pcall('PUBLISH', string.sub(key, 1, -8) .. ':news', '2') end
return answer
