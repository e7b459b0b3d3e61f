module finetune.dev/localcluster/pause

go 1.26
