-- Dead letters, in the order of their keys. ARGV: after this key (empty: from the first), most
-- Answer: time; by letter: key, letter as stored
local most = whole(ARGV[2], 'number of dead letters', 1, 1000)
local state = read_state()
if not state then return { 0 } end
local answer = { (time_of(state)) }
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local keys = redis.call('ZRANGEBYLEX', LETTERS, from, '+', 'LIMIT', 0, most)
if #keys == 0 then return answer end
local letters = redis.call('HMGET', DEAD, unpack(keys))
for i, key in ipairs(keys) do
  if letters[i] then
    answer[#answer + 1] = key
    answer[#answer + 1] = letters[i]
  end
end
return answer
