"""Secrets with credentials, as pods have them: each is a mount of its own, named by whose it is, never the environment.

Two places may so have Secrets with the same keys, and no program that a step starts inherits them.
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator.meta import Object
from finetune_operator.names import volume_name
from finetune_trainer.contract import pod
from finetune_trainer.contract.pod import Owner

MODE = 0o440  # the pod's user reads them by its group


def volumes(secrets: Mapping[Owner, str]) -> list[Object]:
    """A volume for each Secret, by whomever it is used."""
    return [
        {"name": volume_name("secret", name), "secret": {"secretName": name, "defaultMode": MODE}}
        for name in dict.fromkeys(secrets.values())
    ]


def mounts(secrets: Mapping[Owner, str]) -> list[Object]:
    """Where a container finds them, by owner."""
    return [
        {"name": volume_name("secret", name), "mountPath": pod.secret_folder(pod.MOUNTS, owner), "readOnly": True}
        for owner, name in secrets.items()
    ]
