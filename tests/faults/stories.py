"""What a person does to one object of each kind while a fault strikes, step by step, each once the last had its effect.

FineTuneJob: created ─► suspended while it trains ─► resumed ─► succeeds ─► hands over to a ModelServe, which serves
ModelServe:  created ─► a model that fails its gate ─► another that passes ─► two replicas ─► suspended ─► resumed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.stage import Object, Report, Stage, is_engine, is_gate, is_step
from tests.waiting import slowness

from finetune_operator.names import ANNOTATION_MODEL_URI, LABEL_GATE, LABEL_REVISION
from finetune_operator.resources import RESOURCES
from finetune_trainer.contract.exits import ExitCode

API = {"apiVersion": "finetune.dev/v1alpha1"}
WRONG = (int(ExitCode.VERIFICATION_FAILED), '{"failure": {"reason": "GateFailed", "message": "no answer to the greeting"}}')
NOT_YET = (-1, "")  # it goes on running
PATIENCE_SECONDS = 300.0  # for one effect on a quiet machine: some writes arrive after 40 s, and what fails is put off
LLAMA = {"engine": {"type": "LlamaCpp"}, "parallelism": {"gpus": False}}


class NoEffect(Exception):
    """The story came to no end: what was waited for."""


@dataclass
class Scene:
    """One namespace with one object and what its pods do."""

    stage: Stage
    space: str
    kind: str
    pods: Callable[[Object], Report | None] | None = None  # what befalls pods; None: they do well
    free: set[str] = field(default_factory=set)  # steps that may end

    @property
    def body(self) -> Object:
        return self.stage.get(self.space, self.kind, "facts") or {}

    async def create(self, spec: Object) -> None:
        body = {**API, "kind": self.kind, "metadata": {"name": "facts"}, "spec": spec}
        await self.stage.request("POST", RESOURCES[self.kind].path(self.space), body)

    async def edit(self, **spec: Any) -> None:
        await self.stage.patch(self.kind, self.space, "facts", {"spec": spec})

    async def until(self, what: str, true: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        if not await self.stage.until(self.space, true, seconds * slowness()):
            raise NoEffect(what)

    def is_true(self, condition: str, kind: str = "", name: str = "facts") -> bool:
        """Whether a condition of the newest spec is True."""
        body = self.stage.get(self.space, kind or self.kind, name) or {}
        status = body.get("status", {})
        if status.get("observedGeneration") != body.get("metadata", {}).get("generation"):
            return False
        return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions", []))

    def reason(self) -> str:
        """Why it is not, or is, Ready, for the newest spec."""
        status = self.body.get("status", {})
        if status.get("observedGeneration") != self.body.get("metadata", {}).get("generation"):
            return ""
        return next((c["reason"] for c in status.get("conditions", []) if c["type"] == "Ready"), "")

    def has_refused(self) -> bool:
        """Whether the model of the newest spec was refused; a claim that was away for a moment stalls it, too."""
        refused = self.body.get("status", {}).get("candidate", {}).get("state") == "Refused"
        return refused and self.is_true("Stalled")

    def is_at_its_end(self) -> bool:
        """Whether it stands as the story leaves it, and not for a moment otherwise."""
        return self.is_true("Succeeded" if self.kind == "FineTuneJob" else "Ready")

    def works(self, step: str) -> bool:
        """Whether a pod of this step runs."""
        pods = self.stage.list(self.space, "Pod")
        return any(is_step(p, step) and p["status"].get("phase") == "Running" for p in pods)

    def serving(self, revision: str | None = None) -> list[Object]:
        """Ready pods that the stable Service selects."""
        service = self.stage.get(self.space, "Service", "facts")
        selector = ((service or {}).get("spec") or {}).get("selector") or {}
        if revision is not None and selector.get(LABEL_REVISION) != revision:
            return []
        return [p for p in self.stage.list(self.space, "Pod") if selector and is_ready(p) and _selects(selector, p)]

    def ending(self, pod: Object) -> Report | None:
        """What a pod does, for the Stage."""
        if self.pods is not None and (said := self.pods(pod)) is not None:
            return said if said[0] >= 0 else None
        if is_engine(pod) or (is_step(pod, "train") and "train" not in self.free):
            return None
        return self.stage.report(pod)


def is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])


def _selects(selector: dict[str, str], pod: Object) -> bool:
    return bool(selector.items() <= pod["metadata"]["labels"].items())


async def finetune(scene: Scene) -> None:
    """A pipeline of four steps, stopped once on its way."""
    data = {"metadata": {"name": "rows"}, "data": {"train.jsonl": "{}"}}
    await scene.stage.request("POST", RESOURCES["ConfigMap"].path(scene.space), data)
    await scene.create(
        {
            "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
            "dataset": {"uri": "configmap://rows/train.jsonl"},
            "parallelism": {"gpusPerNode": 0},
            "artifacts": [{"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}],
            "serving": {"template": LLAMA},
        }
    )
    await scene.until("it trains", lambda: scene.works("train"))
    await scene.edit(suspend=True)
    await scene.until("it is suspended", lambda: scene.reason() == "Suspended" and not scene.stage.list(scene.space, "Pod"))
    await scene.edit(suspend=False)
    # A pod that ended without a report may have trained to the end: then nothing is left to train.
    done = scene.stage.done[scene.space]
    await scene.until("it trains again", lambda: scene.works("train") or "train" in done)
    scene.free.add("train")
    await scene.until("it has succeeded", lambda: scene.is_true("Succeeded"))
    await scene.until("its model serves", lambda: scene.is_true("Ready", "ModelServe") and scene.serving())


async def serve(scene: Scene) -> None:
    """Three models, of which the second is refused; two replicas; none; two again."""
    scene.pods = _gate_of_two(scene, scene.pods)
    claim = {
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await scene.stage.request("POST", RESOURCES["PersistentVolumeClaim"].path(scene.space), claim)
    await scene.create({"model": {"uri": "pvc://models/one"}, "rollout": {"rollbackWindowSeconds": 0}, **LLAMA})
    await scene.until("the first serves", lambda: scene.is_true("Ready") and scene.serving())
    await scene.edit(model={"uri": "pvc://models/two"})
    await scene.until("the second is refused", lambda: scene.has_refused() and scene.is_true("Available"))
    await scene.edit(model={"uri": "pvc://models/three"})
    await scene.until("the third serves", lambda: scene.is_true("Ready") and scene.serving())
    await scene.edit(replicas=2)
    await scene.until("two pods serve", lambda: scene.is_true("Ready") and len(scene.serving()) == 2)
    await scene.edit(suspend=True)
    await scene.until("no pod serves", lambda: scene.reason() == "Suspended" and not scene.serving())
    await scene.edit(suspend=False)
    await scene.until("two pods serve again", lambda: scene.is_true("Ready") and len(scene.serving()) == 2)


def _gate_of_two(scene: Scene, otherwise: Callable[[Object], Report | None] | None) -> Callable[[Object], Report | None]:
    """The gate finds the second model wrong, whichever its revision is called."""

    def pods(pod: Object) -> Report | None:
        if (said := otherwise(pod) if otherwise else None) is not None:
            return said
        if not is_gate(pod):
            return None
        asked = [d for d in scene.stage.list(scene.space, "Deployment") if _is_asked_by(pod, d)]
        if not asked:  # the watch of Deployments is behind that of pods
            return NOT_YET
        return WRONG if any(d["metadata"]["annotations"][ANNOTATION_MODEL_URI].endswith("/two") for d in asked) else None

    return pods


def _is_asked_by(gate: Object, deployment: Object) -> bool:
    return bool(deployment["metadata"]["labels"][LABEL_REVISION] == gate["metadata"]["labels"][LABEL_GATE])


STORIES = {"FineTuneJob": finetune, "ModelServe": serve}
