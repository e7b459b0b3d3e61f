"""A job's life in a test: decisions are applied to a namespace that behaves as Kubernetes does, pass by pass."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from tests.builders import NOW, Namespace, data_config_map, make_job, make_result

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.decision import Apply, Create, Decision, Observed, Reads, Ref
from finetune_operator.finetunejob import policy
from finetune_operator.finetunejob.objects import run_config_map
from finetune_operator.finetunejob.run_config import run_config
from finetune_operator.finetunejob.runs import current_run
from finetune_operator.finetunejob.status import rendered
from finetune_operator.meta import Object
from finetune_operator.settings import Settings
from finetune_trainer.contract.pipeline import steps
from finetune_trainer.contract.reports import StepResult, Termination
from finetune_trainer.contract.run import RunConfig

SETTINGS = Settings(ended_seconds=10**9)  # so that a story tells of Jobs that have ended only where it is about them


@dataclass
class Story:
    """One job in one namespace. `done` remembers what a store would hold: what prepare finds the next time."""

    job: Object
    space: Namespace = field(default_factory=lambda: Namespace(data_config_map()))
    minute: int = 0
    loss: float = 0.1
    done: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    created: list[Object] = field(default_factory=list)
    settings: Settings = SETTINGS

    @property
    def typed(self) -> FineTuneJob:
        """The job as its policy gets it."""
        return FineTuneJob.model_validate(self.job)

    def one_pass(self) -> list[str]:
        """Reconcile once; returns what was done."""
        self.minute += 10  # longer than any pause between attempts
        decision = self.decide()
        made = (a for a in decision.actions if isinstance(a, Create | Apply) and not self.space.stands(a))
        self.created += [a.body for a in made if a.body["kind"] != "ModelServe"]
        acted = self.space.apply(decision)
        self.job = {**self.job, "status": json.loads(json.dumps(decision.status))}
        self.events += [e.reason for e in decision.events]
        return acted

    def decide(self) -> Decision:
        """What a pass would do now."""
        return policy.decide(self.typed, self.seen(), self.settings, NOW + timedelta(minutes=self.minute))

    def seen(self) -> Observed:
        """What a pass reads of the namespace, and no more."""
        space, reads = self.space.observed(), policy.reads(self.typed)
        children = {kind: space.children.get(kind, ()) for kind in reads.kinds}
        return replace(space, children=children, named=self._named(reads))

    def _named(self, reads: Reads) -> dict[Ref, Object | None]:
        named = self.space.named
        return {ref: body for ref, body in named.items() if ref in reads.named or ref.kind in reads.learnt}

    def passes(self, count: int = 3) -> list[str]:
        return [what for _ in range(count) for what in self.one_pass()]

    def run(self) -> RunConfig:
        return run_config(self.typed)

    def result(self, step: str) -> StepResult:
        asked = {s.name for s in steps(self.run())}
        return make_result(self.run(), step, done=tuple(d for d in self.done if d in asked), loss=self.loss)

    def succeed(self, step: str = "") -> None:
        """The step at work, this one where several are, ends well, as its pod would report."""
        step = step or self.space.running()["metadata"]["labels"]["finetune.dev/step"]
        self.space.end(0, Termination(result=self.result(step)), step=step)
        if step != "prepare":
            self.done.append(step)

    def succeed_with(self, result: StepResult) -> None:
        self.space.end(0, Termination(result=result))

    def to_the_end(self) -> list[str]:
        """Each step ends well as soon as it is started. Returns the steps whose Jobs were started."""
        started = [a for a in self.passes() if a.startswith("job ")]
        while any(not j["status"].get("conditions") for j in self.space.jobs.values()):
            self.succeed(next(iter(self.space.at_work())))
            started += [a for a in self.passes() if a.startswith("job ")]
        return [a.removeprefix("job ") for a in dict.fromkeys(started)]

    def edit(self, **spec: Any) -> None:
        meta = {**self.job["metadata"], "generation": self.job["metadata"]["generation"] + 1}
        self.job = {**self.job, "metadata": meta, "spec": {**self.job["spec"], **spec}}

    def annotate(self, name: str, value: str) -> None:
        self.job["metadata"]["annotations"][f"finetune.dev/{name}"] = value

    def conditions(self) -> dict[str, tuple[str, str]]:
        return {c["type"]: (c["status"], c["reason"]) for c in self.job["status"]["conditions"]}

    def step(self, name: str) -> dict[str, Any]:
        return next(s for s in self.job["status"]["steps"] if s["name"] == name)


def succeeded(spec: Object) -> Object:
    """A FineTuneJob that has gone through all of its steps."""
    story = Story(make_job("restored") | {"spec": spec})
    while story.job.get("status", {}).get("stage") != "Succeeded":
        story.passes()
        if story.space.at_work():
            story.succeed()
    return story.job


def as_restored(pattern: Object, made: Object) -> tuple[Object, Object]:
    """What a backup has of a job besides its spec, which the API server has just made: its status, and its run's ConfigMap.

    It succeeded as the pattern did, under its own name.
    """
    old_run = current_run(FineTuneJob.model_validate(pattern))[0].id
    run = current_run(FineTuneJob.model_validate({**made, "status": pattern["status"]}))[0].id
    text = json.dumps(pattern["status"]).replace(old_run, run).replace(pattern["metadata"]["name"], made["metadata"]["name"])
    job = FineTuneJob.model_validate({**made, "status": json.loads(text)})
    found, status = current_run(job)
    return rendered(status), run_config_map(job, found)
