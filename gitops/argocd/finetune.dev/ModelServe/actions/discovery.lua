-- What can be done now: the others are shown, and disabled.
local annotations = obj.metadata.annotations or {}
local held = annotations["finetune.dev/hold"] == "true"
local suspended = obj.spec.suspend == true
local stalled = false
if obj.status ~= nil then
  for _, condition in ipairs(obj.status.conditions or {}) do
    if condition.type == "Stalled" and condition.status == "True" then
      stalled = true
    end
  end
end
return {
  ["retry"] = {["disabled"] = not stalled},
  ["hold"] = {["disabled"] = held},
  ["release"] = {["disabled"] = not held},
  ["suspend"] = {["disabled"] = suspended},
  ["resume"] = {["disabled"] = not suspended},
}
