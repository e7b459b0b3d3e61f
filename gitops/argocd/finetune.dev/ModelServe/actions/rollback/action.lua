-- The revision that serves is left for the one before it, until the spec asks for another.
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["finetune.dev/rollback"] = obj.status.live.name
return obj
