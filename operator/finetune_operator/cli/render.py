"""What the operator would create for a job, step by step, as manifests: for reading and for policy checks in CI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob import objects
from finetune_operator.finetunejob.case import Start
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
        yield objects.attempt_job(job, run, Start(step, 1), status, read_settings(), {})


def manifests(objects: Iterable[Object]) -> str:
    """YAML documents for people: texts of several lines as they are, fields in the order in which they were written."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
