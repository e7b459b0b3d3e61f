"""A ModelServe and the part of a cluster that its policy sees, stepped by hand: what is decided is applied, no more."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.applied import Applied
from finetune_operator.decision import Apply, Create, Decision, Delete, NotePod, Observed
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.modelserve import policy
from finetune_operator.names import LABEL_REVISION
from finetune_operator.reconcile import pruned
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.reports import Failure, Termination

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
SETTINGS = Settings()
SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://models/q4", "digest": "sha256:" + "a" * 64},
    "engine": {"type": "LlamaCpp"},
    "parallelism": {"gpus": False},
}


def make_serve(name: str = "facts", **spec: Any) -> Object:
    """A ModelServe as it is just after `kubectl apply`. Keywords replace fields of the spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelServe",
        "metadata": {"name": name, "namespace": "default", "uid": "serve-uid", "generation": 1, "annotations": {}},
        "spec": copy.deepcopy({**SPEC, **spec}),
        "status": {"observedGeneration": -1},
    }


def make_finished_job(name: str = "facts", digest: str = "b", **status: Any) -> Object:
    """A FineTuneJob that has succeeded, with the artifacts merged and q4."""
    artifacts = [
        {"name": n, "format": f, "uri": f"pvc://{name}-artifacts/{n}", "digest": f"sha256:{digest * 64}", "bytes": 10**8}
        for n, f in (("merged", "Safetensors"), ("q4", "GGUF"))
    ]
    condition = {"type": "Succeeded", "status": "True", "reason": "Succeeded"}
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "default", "uid": "job-uid", "generation": 1},
        "spec": {},
        "status": {"observedGeneration": 1, "conditions": [condition], "artifacts": artifacts, **status},
    }


MADE_ONCE = ("Job", "ConfigMap", "ControllerRevision")


class Stage:
    """The cluster around one ModelServe. `step` is one pass; the other methods play the other controllers."""

    def __init__(self, serve: Object | None = None) -> None:
        self.serve = serve or make_serve()
        self.objects: dict[tuple[str, str], Object] = {}
        self.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "models"}})
        self.now = NOW
        self.settings = SETTINGS
        self.unserved: frozenset[str] = frozenset()
        self.paced: tuple[str, ...] = ()  # namespaces of others whose turn it is
        self.deleted: list[str] = []
        self.templates_may_change = False  # where somebody else did it first
        self._uids = itertools.count()

    # ── the user ──

    def edit(self, **spec: Any) -> None:
        """`kubectl apply` of a changed spec."""
        self.serve["spec"] = copy.deepcopy({**self.serve["spec"], **spec})
        self.serve["metadata"]["generation"] += 1

    def annotate(self, key: str, value: str) -> None:
        self.serve["metadata"]["annotations"][key] = value

    def put(self, body: Object) -> None:
        self.objects[body["kind"], body["metadata"]["name"]] = body

    # ── the operator ──

    def step(self) -> Decision:
        """One pass: read, decide, apply, write the status. Returns the decision with the actions that changed something."""
        reads = policy.reads(ModelServe.model_validate(self.serve))
        children = {k: tuple(o for o in self.of(k) if _has(o, reads.labels)) for k in reads.kinds}
        named = {ref: self.objects.get((ref.kind, ref.name)) for ref in reads.named}
        seen = copy.deepcopy(Observed(children, named, paced=self.paced, unserved=self.unserved))
        decision = policy.decide(ModelServe.model_validate(self.serve), seen, self.settings, self.now)
        before = copy.deepcopy(self.objects)
        done = [action for action in decision.actions if self._act(action)]
        assert bool(done) == (before != self.objects)
        self.serve["status"] = pruned(decision.status)
        return replace(decision, actions=tuple(done))

    def settle(self, passes: int = 6) -> Decision:
        """Passes until nothing is done any more; the last one changed nothing."""
        for _ in range(passes):
            before = self.serve["status"]
            decision = self.step()
            if not decision.actions and self.serve["status"] == before:
                return decision
        raise AssertionError(f"it never settles: {decision}")

    def _act(self, action: Any) -> bool:
        match action:
            case Create(body):
                assert body["kind"] in MADE_ONCE, f"{body['kind']} is to be applied, so that it stays as it is wanted"
                return self._store(body, keep=True)
            case Apply(body):
                return self._store(body, keep=False)
            case Delete(kind, name, uid):
                assert self.objects[kind, name]["metadata"]["uid"] == uid
                del self.objects[kind, name]
                self.deleted.append(name)
                return True
            case NotePod(name, uid, notes):
                meta = self.objects["Pod", name]["metadata"]
                assert meta["uid"] == uid
                meta["annotations"] = {**meta.get("annotations", {}), **notes}
                return True
            case other:
                raise AssertionError(other)

    def _store(self, body: Object, *, keep: bool) -> bool:
        key = body["kind"], body["metadata"]["name"]
        old = self.objects.get(key)
        if old is not None and (keep or Applied().stands(body, old)):
            return False
        new = copy.deepcopy(body)
        if old is None:
            new["metadata"] |= {"uid": f"uid-{next(self._uids)}", "generation": 1, "creationTimestamp": self.stamp()}
        else:
            changed = old.get("spec") != new.get("spec")
            same = key[0] != "Deployment" or old["spec"]["template"] == new["spec"]["template"]
            assert same or self.templates_may_change, "a template was changed"
            kept = {k: old["metadata"][k] for k in ("uid", "creationTimestamp")}
            new["metadata"] |= {**kept, "generation": old["metadata"]["generation"] + changed}
            new["status"] = old.get("status", {})
        self.objects[key] = new
        return True

    # ── the other controllers ──

    def available(self, revision: str, count: int | None = None) -> None:
        """The Deployment controller: this many pods (all that are wanted) are available."""
        found = self.deployment(revision)
        count = found["spec"]["replicas"] if count is None else count
        generation = found["metadata"]["generation"]
        found["status"] = {"observedGeneration": generation, "readyReplicas": count, "availableReplicas": count}

    def gateway(self, count: int = 1) -> None:
        """The Deployment controller: this many pods of the gateway are available."""
        (found,) = [d for d in self.of("Deployment") if LABEL_REVISION not in d["metadata"]["labels"]]
        found["status"] = {"observedGeneration": 1, "availableReplicas": count}

    def look_ends(self) -> None:
        """The Job controller: the Job has seen at the gateway what it waits for."""
        self._end_gate("Complete", "")

    def overdue(self, revision: str) -> None:
        """The Deployment controller: no progress within progressDeadlineSeconds."""
        overdue = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        self.deployment(revision).setdefault("status", {})["conditions"] = [overdue]

    def engine(self, revision: str, *, ready: bool = True, restarts: int = 0, **ended: Any) -> None:
        """The revision's pod: its engine has started, is ready since now or not, and has perhaps ended before."""
        last = {"terminated": {"finishedAt": self.stamp(), **ended}} if ended else {}
        engine = {"name": "engine", "started": True, "restartCount": restarts, "state": {}, "lastState": last}
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": self.stamp()}
        self.pod(revision, phase="Running", conditions=[condition], containerStatuses=[engine])

    def pod(self, revision: str, **status: Any) -> None:
        """A pod of the revision that is not ready."""
        template, name = self.deployment(revision)["spec"]["template"], f"pod-{revision}"
        notes = self.objects.get(("Pod", name), {"metadata": {}})["metadata"].get("annotations", {})
        meta = {"name": name, "uid": f"uid-{name}", "labels": template["metadata"]["labels"], "annotations": notes}
        meta["creationTimestamp"] = self.stamp()
        spec = {"containers": [{"name": container["name"]} for container in template["spec"]["containers"]]}
        self.put({"kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": "Pending", **status}})

    def finish_gate(self, failure: Failure | None = None, reason: str = "PodFailurePolicy", **numbers: Report) -> None:
        """The Job controller: the gate's pod ended, with this failure and these numbers in its report."""
        job = self._end_gate("Complete" if failure is None else "Failed", reason)
        self._gate_pod(job, 24 if failure else 0, Termination(failure=failure, **numbers))

    def lose_gate(self, failure: Failure | None, reason: str, code: int = ExitCode.SOURCE_UNAVAILABLE) -> None:
        """The Job controller: the gate came to no verdict; the pod said so, or vanished."""
        job = self._end_gate("Failed", reason)
        if failure is not None:
            self._gate_pod(job, code, Termination(failure=failure))

    def _end_gate(self, kind: str, reason: str) -> Object:
        (job,) = [j for j in self.of("Job") if not j.get("status")]
        ended = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": self.stamp()}
        job["status"] = {"conditions": [ended]}
        return job

    def _gate_pod(self, job: Object, code: int, termination: Termination) -> None:
        report = termination.model_dump_json(by_alias=True, exclude_none=True)
        ended = [{"name": "ask", "state": {"terminated": {"exitCode": code, "message": report}}}]
        meta = {
            "name": job["metadata"]["name"],
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}],
        }
        self.put({"kind": "Pod", "metadata": meta, "status": {"phase": "Succeeded", "containerStatuses": ended}})

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def roll_out(self) -> str:
        """Take what is asked for all the way to live; returns the revision."""
        revision = self.roll_out_canary()
        assert self.live() == revision
        return revision

    def roll_out_canary(self) -> str:
        """Take what is asked for past its gate: to its first share, where there is a canary; returns the revision."""
        self.step()
        revision = self.candidate()
        self.available(revision)
        self.step()
        self.finish_gate()
        self.settle()
        return revision

    def promote_another(self, **model: Any) -> tuple[str, str]:
        """Two revisions go live, one after the other; returns both, and nothing has happened since."""
        old = self.roll_out()
        self.later(3600)
        self.edit(model=model or {"uri": "pvc://models/other"})
        return old, self.roll_out()

    # ── what can be seen ──

    def of(self, kind: str) -> list[Object]:
        return [o for (k, _), o in self.objects.items() if k == kind]

    def deployment(self, revision: str) -> Object:
        return next(d for d in self.of("Deployment") if d["metadata"]["labels"].get(LABEL_REVISION) == revision)

    def revisions(self) -> set[str]:
        """Revisions that have a Deployment."""
        labels = (d["metadata"]["labels"] for d in self.of("Deployment"))
        return {found[LABEL_REVISION] for found in labels if LABEL_REVISION in found}

    def candidate(self) -> str:
        return str(self.serve["status"]["candidate"]["name"])

    def live(self) -> str | None:
        """The revision that the stable Service selects alone."""
        service = self.objects.get(("Service", self.serve["metadata"]["name"]))
        found: str | None = None if service is None else service["spec"]["selector"].get(LABEL_REVISION)
        return found

    def conditions(self) -> dict[str, tuple[str, str]]:
        return {c["type"]: (c["status"], c["reason"]) for c in self.serve["status"]["conditions"]}

    def message(self, kind: str = "Ready") -> str:
        return str(next(c["message"] for c in self.serve["status"]["conditions"] if c["type"] == kind))

    def stamp(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _has(body: Object, labels: dict[str, str]) -> bool:
    found: dict[str, str] = body["metadata"].get("labels", {})
    return labels.items() <= found.items()
