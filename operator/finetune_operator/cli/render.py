"""What the operator would create for a job, step by step, as manifests: for reading and for policy checks in CI."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.finetunejob import objects
from finetune_operator.finetunejob.api import FineTuneJob
from finetune_operator.finetunejob.plan import Start
from finetune_operator.finetunejob.runs import current_run
from finetune_operator.meta import Object
from finetune_operator.settings import read_settings


def children(job: FineTuneJob) -> Iterator[Object]:
    """The claim, the run's ConfigMap and the first Job of each step. Uids and hashes differ from a cluster's."""
    run, status = current_run(job)
    if job.spec.storage.artifacts.uri is None:
        yield objects.artifacts_volume_claim(job)
    yield objects.run_config_map(job, run)
    for step in run.steps:
        yield objects.attempt_job(job, run, Start(step, 1), status, read_settings())
