"""An operator that was there before its CRDs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from finetune_operator.crds import wait_for
from finetune_operator.errors import Unavailable
from finetune_operator.probes import Readiness


class Installing:
    """An API server to which the CRDs come one after the other; it answers nothing at first."""

    def __init__(self) -> None:
        self.answers: list[Collection[str] | Exception] = [
            Unavailable("it starts"),
            (),
            ("finetunejobs",),
            ("modelserves", "finetunejobs", "finetunejobs/status"),
        ]

    async def own_resources(self) -> Collection[str]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_it_waits_for_each_crd_and_says_which_is_missing() -> None:
    readiness, told = Readiness(), []

    async def sleep(_: float) -> None:
        told.append(readiness.waits_for)

    asyncio.run(wait_for(("finetunejobs", "modelserves"), Installing(), readiness, sleep))
    assert told == [
        "the API server does not say what it serves: it starts",
        "the cluster has no CRD finetunejobs.finetune.dev, modelserves.finetune.dev: apply crds/",
        "the cluster has no CRD modelserves.finetune.dev: apply crds/",
    ]
    assert readiness.waits_for == ""
