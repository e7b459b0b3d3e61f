-- A new value gives what was refused, or has failed, another try.
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["finetune.dev/retry"] = os.date("!%Y-%m-%dT%XZ")
return obj
