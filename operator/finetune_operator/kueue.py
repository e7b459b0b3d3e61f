"""What is known of Kueue: its API group, and what a read of a LocalQueue comes to."""

from __future__ import annotations

from finetune_operator.meta import Object

KUEUE = "kueue.x-k8s.io"
LOCAL_QUEUE = "LocalQueue"  # a Ref of this kind is read by queues.py
NOT_SERVED: Object = {"kind": "Status", "reason": "NotFound"}  # the answer where the cluster has no Kueue
UNTOLD: Object = {"kind": LOCAL_QUEUE}  # we may not read it: it is taken as there
