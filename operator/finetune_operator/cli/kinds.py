"""The kinds that the command line reads or changes, how their names are written, and rights on them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.resources import RESOURCES, Resource

KINDS = {
    **RESOURCES,
    "LocalQueue": Resource("kueue.x-k8s.io/v1beta1", "localqueues"),
    "Node": Resource("v1", "nodes"),
    "ResourceQuota": Resource("v1", "resourcequotas"),
    "StorageClass": Resource("storage.k8s.io/v1", "storageclasses"),
}
PREFIXES = {
    "FineTuneJob": ("ftj", "finetunejob", "finetunejobs"),
    "ModelServe": ("mserve", "modelserve", "modelserves"),
}
CLUSTER_WIDE = frozenset({"Node", "StorageClass"})


@dataclass(frozen=True)
class Right:
    """A verb on a kind, as the API server's authorizer asks for it."""

    verb: str
    kind: str
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {KINDS[self.kind].plural}{self.subresource and '/' + self.subresource}"
