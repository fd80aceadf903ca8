-- The entry of a key, as it is stored. KEYS: 1 entries. ARGV: key
return redis.call('HGET', KEYS[1], ARGV[1])
