"""Certificates that a pod trusts beside those of its image: those of an object store with an authority of its own."""

from __future__ import annotations

from finetune_operator.meta import Object
from finetune_trainer.contract.fields import CaSecretRef

VOLUME, FOLDER, FILE = "ca", "/etc/finetune-ca", "ca.crt"


def volume(ref: CaSecretRef) -> Object:
    """The pod's volume: the one key, under a name of ours."""
    return {"name": VOLUME, "secret": {"secretName": ref.name, "items": [{"key": ref.key, "path": FILE}]}}


def mount() -> Object:
    """Where a container finds it."""
    return {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}


def environment(ref: CaSecretRef | None) -> dict[str, str]:
    """The variable that the store's client reads; none without certificates."""
    return {} if ref is None else {"AWS_CA_BUNDLE": f"{FOLDER}/{FILE}"}
