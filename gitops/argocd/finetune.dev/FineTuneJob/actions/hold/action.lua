-- The operator neither creates, changes nor deletes anything for it.
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["finetune.dev/hold"] = "true"
return obj
