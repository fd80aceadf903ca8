-- Records of effects; comes behind header.lua. A string each: format, position that it was begun for, fence, attempt, outcome or
-- false; packed.
-- Those of a group that was removed do not count; their fences do.
local function effects(group)
  local removed = tonumber(redis.call('HGET', META, 'r:' .. group) or 0)
  return function(key)
    local packed = redis.call('GET', key)
    local effect = packed and cmsgpack.unpack(packed)
    if not effect then return nil, removed end
    if effect[3] <= removed then return nil, effect[3] end
    return effect, effect[3]
  end
end

local function record_effect(key, effect, ms) redis.call('SET', key, cmsgpack.pack(effect), 'PX', ms) end
