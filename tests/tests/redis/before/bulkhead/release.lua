-- ARGV: 1 channel, then the returns
-- Answer: for each return whether it was held
check_returns(2)
sweep()
local released = take_back(2)
-- What is still held has its keys' lives already.
if freed and born > 0 then redis.call('HSET', KEYS[1], 'in_flight', text(in_flight)) end
return done(released)
