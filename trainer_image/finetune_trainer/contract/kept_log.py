"""Where an attempt's log lies in the artifact store once its pods are gone: pods write it there, `finetune logs` reads it.

    <root>/log/<namespace>/<job>/<run>/<step>/<attempt>/<pod>.log      the end of what the pod printed
                                                       /<pod>.json     how it ended, and its last progress (PodEnd)

`pod` is 0, or the pod's place among those of the attempt.
"""

from __future__ import annotations

from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.reports import Failure, Progress

KIND = "log"
LOG, END = ".log", ".json"
LIMIT = 1 << 20  # bytes of a log that are kept: the last ones


class PodEnd(Report):
    """How one pod of an attempt ended."""

    exit_code: int
    failure: Failure | None = None
    progress: Progress | None = None  # the last that it told
    left_out: int = 0  # bytes of its log that came before what is kept


def folder(namespace: str, job: str, run: str, step: str, attempt: int) -> str:
    """The folder of an attempt, below the store's root."""
    return f"{KIND}/{namespace}/{job}/{run}/{step}/{attempt}"
