"""What Pod Security "restricted" wants of every pod that we start."""

from __future__ import annotations

from finetune_operator.meta import Object

USER = 10001  # of our images; others run under it too


def pod() -> Object:
    """securityContext of the pod: volumes become the user's by their group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container() -> Object:
    """securityContext of each container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
