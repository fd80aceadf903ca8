-- Records that the work is done. The holder's number: how long the outcome is kept; its bytes: the outcome. The record is the
-- one that is kept, head and all, so that no copy is made of it here. The time of completion is therefore the
-- holder's estimate of the server's time: it gives the outcome's age, and decides nothing. A repeated completion keeps the
-- first outcome
if phase == 0 then return 'over' end
if phase == 2 then return answer end
if string.byte(ours, 2) ~= 2 then error(redis.error_reply('ERR an outcome that makes no sense: ' .. key)) end
-- See save.lua.
if read then redis.call('PEXPIRE', key, ARGV[2]) end
redis.call('SET', key, ours, 'PX', ARGV[2])
if heard == 1 then redis.pcall('PUBLISH', string.sub(key, 1, -8) .. ':news', '1:2') end
return answer
