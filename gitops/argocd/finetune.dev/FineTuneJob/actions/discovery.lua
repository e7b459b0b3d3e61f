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
local actions = {
  ["retry"] = {["disabled"] = not stalled},
  ["hold"] = {["disabled"] = held},
  ["release"] = {["disabled"] = not held},
  ["suspend"] = {["disabled"] = suspended},
  ["resume"] = {["disabled"] = not suspended},
}
if obj.kind == "ModelServe" then
  local status = obj.status or {}
  local live, candidate = status.live or {}, status.candidate or {}
  actions["promote"] = {["disabled"] = candidate.state ~= "Passed" and candidate.state ~= "Canary"}
  actions["rollback"] = {["disabled"] = #(status.history or {}) < 2 or annotations["finetune.dev/rollback"] == live.name}
end
return actions
