"""What must hold after each fault, whatever it was: the same end, the same creations, no broken promise on the way, silence."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.faults.stage import KINDS, Change, Object
from tests.faults.stories import Scene, is_ready
from tests.integration import test_crashes

from finetune_operator.names import LABEL_REVISION

MADE = tuple(kind for kind in KINDS if kind != "Pod")
VOLATILE = frozenset({"createdAt", "reached", "runSpec"}) | test_crashes.VOLATILE
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z")
OF_THE_SERVER = frozenset(
    {
        *("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink", "finalizers"),
        *("clusterIP", "clusterIPs", "controller-uid", "batch.kubernetes.io/controller-uid", "volumeName"),
        *("deployment.kubernetes.io/revision", "pv.kubernetes.io/bind-completed", "observedGeneration", "selector"),
    }
)
# By pods that were lost, and their reports with them.
EXPLAINED = frozenset({"attempt", "job", "lastFailure", "retries", "gatesLost", "trial", "resumedFromStep"})

TWO_AT_WORK = "two Jobs at work"


def end_state(scene: Scene, *, loose: bool = False) -> list[str]:
    """All that is left in the namespace, line by line, without what differs between two good runs."""
    kept = sorted(
        (kind, name, body)
        for (kind, name), body in scene.stage.objects[scene.space].items()
        if kind in MADE and name != "kube-root-ca.crt" and not (loose and kind == "Job")
    )
    found = [_shown(kind, body, loose) for kind, _, body in kept]
    text = json.dumps(found, indent=1, sort_keys=True)
    if loose:  # a step whose report was lost is found in the store
        text = text.replace('"Reused"', '"Succeeded"')
    run = (scene.body.get("status") or {}).get("run") or ""
    text = TIME.sub("TIME", text.replace(scene.space, "SPACE"))
    return (text.replace(run.rpartition("-")[2], "RUN") if run else text).splitlines()


def _shown(kind: str, body: Object, loose: bool) -> Any:
    whole = kind in ("FineTuneJob", "ModelServe")
    parts = {k: v for k, v in body.items() if k != "status" or whole}
    return {"kind": kind, **_stable(parts, VOLATILE | OF_THE_SERVER | (EXPLAINED if loose else frozenset()))}


def _stable(value: Any, without: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v, without) for k, v in value.items() if k not in without}
    return [_stable(v, without) for v in value] if isinstance(value, list) else value


def difference(wanted: list[str], found: list[str]) -> str:
    """The first lines in which two end states differ."""
    lines = list(difflib.unified_diff(wanted, found, "undisturbed", "disturbed", n=1, lineterm=""))
    return "\n".join(lines[:24])


def creations(scene: Scene) -> Counter[str]:
    """How often objects of each kind were created and deleted: `+Job`, `-Job`."""
    signs = {"ADDED": "+", "DELETED": "-"}
    return Counter(f"{signs[c.type]}{c.kind}" for c in scene.stage.history[scene.space] if c.type in signs and c.kind in MADE)


def broken_promises(scene: Scene, struck: str = "") -> Iterator[str]:
    """Each promise that did not hold at some moment, replayed event by event in etcd's order. That no pod answers while the
    one that the fault `struck` was alone is the fault's doing.
    """
    world: dict[tuple[str, str], Object] = {}
    served = False
    for change in sorted(scene.stage.history[scene.space], key=lambda c: c.version):
        before = world.get((change.kind, change.body["metadata"]["name"]))
        _advance(world, change)
        jobs = [b for (kind, _), b in world.items() if kind == "Job"]
        yield from _of_jobs(world, jobs)
        if before is not None and change.type == "MODIFIED":
            yield from _of_status(before, change)
        serve = world.get(("ModelServe", "facts"))
        if serve is not None:
            paused = serve["spec"].get("suspend") or serve["spec"].get("replicas") == 0
            answers = bool(_selected(world))
            served = (served or answers) and not paused
            if served and not answers:
                if change.body["metadata"]["name"] != struck:
                    yield "the live Service selects nothing that is ready"
                served = False


def _advance(world: dict[tuple[str, str], Object], change: Change) -> None:
    key = (change.kind, change.body["metadata"]["name"])
    if change.type == "DELETED":
        world.pop(key, None)
    else:
        world[key] = change.body


def _of_jobs(world: dict[tuple[str, str], Object], jobs: list[Object]) -> Iterator[str]:
    at_work = [j for j in jobs if _is_at_work(j) and any(o["kind"] == "FineTuneJob" for o in j["metadata"]["ownerReferences"])]
    if len(at_work) > 1:
        yield f"{TWO_AT_WORK}: {', '.join(j['metadata']['name'] for j in at_work)}"
    job = world.get(("FineTuneJob", "facts"))
    if job is not None and job["spec"].get("suspend") and at_work:
        ready: Object = next((c for c in job.get("status", {}).get("conditions", []) if c["type"] == "Ready"), {})
        seen = job.get("status", {}).get("observedGeneration") == job["metadata"]["generation"]
        if seen and ready.get("reason") == "Suspended":
            yield f"it says Suspended while {at_work[0]['metadata']['name']} is at work"


def _is_at_work(job: Object) -> bool:
    over = any(
        c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in job.get("status", {}).get("conditions", [])
    )
    return not over and not job["spec"].get("suspend") and "deletionTimestamp" not in job["metadata"]


def _of_status(before: Object, change: Change) -> Iterator[str]:
    if change.kind not in ("FineTuneJob", "ModelServe"):
        return
    old, new = before.get("status", {}), change.body.get("status", {})
    if new.get("observedGeneration", 0) > change.body["metadata"]["generation"]:
        yield f"{change.kind}: observedGeneration is ahead of the spec"
    if new.get("observedGeneration", 0) < old.get("observedGeneration", 0):
        yield f"{change.kind}: observedGeneration went back"
    attempts = {s["name"]: s.get("attempt", 0) for s in old.get("steps", [])}
    if old.get("run") == new.get("run"):
        for step in new.get("steps", []):
            if step.get("attempt", 0) < attempts.get(step["name"], 0):
                yield f"the attempt of {step['name']} went back"
    if _says(old, "Succeeded") and not _says(new, "Succeeded"):
        yield "what had succeeded has not any more"


def _says(status: Object, condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions", []))


def _selected(world: dict[tuple[str, str], Object]) -> list[Object]:
    selector = ((world.get(("Service", "facts")) or {}).get("spec") or {}).get("selector") or {}
    pods = [b for (kind, _), b in world.items() if kind == "Pod"]
    return [
        p for p in pods if LABEL_REVISION in selector and is_ready(p) and selector.items() <= p["metadata"]["labels"].items()
    ]
