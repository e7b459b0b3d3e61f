-- The health of a FineTuneJob or a ModelServe, by the conditions that docs/status.md promises.
local health = {status = "Progressing", message = "the operator has not seen this generation yet"}
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled, held = conditions.Ready, conditions.Stalled, conditions.Held
if held ~= nil and held.status == "True" then
  return {status = "Suspended", message = held.message}
end
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.reason .. ": " .. stalled.message}
end
if ready == nil then
  return health
end
health.message = ready.reason .. ": " .. ready.message
if ready.reason == "Suspended" or ready.reason == "ScaledToZero" or ready.reason == "AwaitingPromotion" then
  health.status = "Suspended"
elseif ready.status == "True" then
  health.status = "Healthy"
end
return health
