-- The revision that has passed its gate and waits takes the traffic.
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["finetune.dev/promote"] = obj.status.candidate.name
return obj
