obj.metadata.annotations["finetune.dev/hold"] = nil
return obj
