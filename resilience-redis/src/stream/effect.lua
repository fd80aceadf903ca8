-- Records of effects; comes behind group.lua. A string each: format, position that it was begun for, fence, attempt, outcome or
-- false; packed.
--
-- Those of a group that was removed do not count; their fences do.
local removed, effects = 0, {}

-- All reads come first: a key of another type ends the script before it wrote anything.
local function read_effects(are_new)
  if not KEYS[10] then return end
  removed = tonumber(redis.call('HGET', META, 'r:' .. group) or 0)
  for i = 10, are_new and 9 or #KEYS do
    local packed = redis.call('GET', KEYS[i])
    effects[KEYS[i]] = packed and cmsgpack.unpack(packed) or nil
  end
end

-- The record, and the highest fence.
local function effect_of(key)
  local effect = effects[key]
  if not effect then return nil, removed end
  if effect[3] <= removed then return nil, removed end
  return effect, effect[3]
end

local function record_effect(key, effect, ms)
  effects[key] = effect
  redis.call('SET', key, cmsgpack.pack(effect), 'PX', ms)
end
