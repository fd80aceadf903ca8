-- What the server's clock shows, in microseconds.
local time = redis.call('TIME')
local shown = time[1] * 1000000 + time[2]
