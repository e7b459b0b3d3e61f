"""Random walks: edits, passes that are cut off, children that go. Each ends where a fresh ModelServe of the last spec ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.serving import Stage, make_serve

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.decision import Delete, Observed
from finetune_operator.errors import InvalidSpec
from finetune_operator.meta import Object
from finetune_operator.modelserve import policy
from finetune_operator.names import ANNOTATION_MODEL_URI, LABEL_GATE, LABEL_REVISION
from finetune_operator.reconcile import without_unknown
from finetune_trainer.contract.reports import Failure

WRONG = Failure(reason="GateFailed", message="1 of 1 prompts: expects 'Velmora'")
GOOD: dict[str, Any] = {"model": {"uri": "pvc://models/good"}, "suspend": False, "replicas": 1}
EDITS: list[dict[str, Any]] = [
    *({"model": {"uri": f"pvc://models/{name}"}} for name in ("good", "better", "bad", "worse")),
    *({"model": {"uri": uri}} for uri in ("pvc://absent/one", "hf://a/b", "", "pvc://models/../..")),
    *({"replicas": count} for count in (0, 1, 3)),
    *({"suspend": suspend} for suspend in (True, False)),
    *({"resources": {"limits": {"memory": memory}}} for memory in ("8Gi", "16Gi")),
    {"rollout": {"gate": {"prompts": [{"prompt": "Hi"}]}}},
    {"rollout": {"rollbackWindowSeconds": 0}},
    {"rollout": {"canary": {"steps": [{"weight": 10, "pauseSeconds": 300}, {"weight": 50, "pauseSeconds": 300}]}}},
]
CHILDREN = ("Deployment", "Service", "Job", "ControllerRevision", "Pod")
Move = Callable[[Stage], None]


def edit(spec: dict[str, Any]) -> Move:
    return lambda stage: stage.edit(**spec)


def cut_pass(count: int) -> Move:
    """A pass that gets no further than so many writes; the status is one of them."""

    def move(stage: Stage) -> None:
        decision, left = decided(stage), count
        if decision is None:
            return
        if decision.intent and left:
            stage.serve["status"], left = decision.status, left - 1
        for action in decision.actions[:left]:
            if not isinstance(action, Delete) or (action.kind, action.name) in stage.objects:
                stage._act(action)

    return move


def lose(kind: str) -> Move:
    """Somebody deletes all children of a kind."""

    def move(stage: Stage) -> None:
        for body in stage.of(kind):
            del stage.objects[kind, body["metadata"]["name"]]

    return move


def play(stage: Stage) -> None:
    """One pass, and what the other controllers make of it: pods come up, gates are answered."""
    stage.later(400)
    if decided(stage) is None:
        return
    stage.step()
    for deployment in stage.of("Deployment"):
        stage.available(deployment["metadata"]["labels"][LABEL_REVISION])
    for job in [j for j in stage.of("Job") if not j.get("status")]:
        asked = job["spec"]["template"]["metadata"]["labels"][LABEL_GATE]
        uri = next((u for u in uris(stage, asked)), "")
        stage.finish_gate(WRONG if uri.endswith(("bad", "worse")) else None)


def decided(stage: Stage) -> Any:
    """The pass's decision; None where the spec can't be read, which stalls the object and nothing else."""
    try:
        serve = without_unknown(ModelServe, stage.serve)
    except InvalidSpec:
        return None
    reads = policy.reads(serve)
    children = {k: tuple(stage.of(k)) for k in reads.kinds}
    named = {ref: stage.objects.get((ref.kind, ref.name)) for ref in reads.named}
    return policy.decide(serve, Observed(children, named), stage.settings, stage.now)


def uris(stage: Stage, revision: str) -> list[str]:
    found = [d for d in stage.of("Deployment") if d["metadata"]["labels"][LABEL_REVISION] == revision]
    return [d["metadata"]["annotations"][ANNOTATION_MODEL_URI] for d in found]


def at_rest(stage: Stage) -> Object:
    """What it comes to when nothing else happens: what serves, by which manifests, and what it says."""
    for _ in range(8):
        play(stage)
    stage.settle()
    kept = ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")
    specs = {f"{k} {b['metadata']['name']}": b.get("spec") for k in kept for b in stage.of(k)}
    return {"live": stage.live(), "specs": specs, "conditions": stage.conditions()}


def moves(*lost: str) -> st.SearchStrategy[list[Move]]:
    """Walks on which children of these kinds may be lost."""
    one = (st.sampled_from(EDITS).map(edit), st.integers(0, 6).map(cut_pass), st.sampled_from(lost).map(lose), st.just(play))
    return st.lists(st.one_of(*one), max_size=10)


@settings(deadline=None, max_examples=10)
@given(walk=moves(*CHILDREN))
def test_a_walk_ends_where_a_fresh_one_with_the_last_spec_ends(walk: list[Move]) -> None:
    stage = Stage(make_serve(**GOOD))
    for move in walk:
        move(stage)
    stage.edit(**GOOD)
    spec = stage.serve["spec"]
    fresh = Stage(make_serve(**spec))
    assert at_rest(stage) == at_rest(fresh)


# Where the Deployment and the record of it are both gone, nothing tells what served.
@settings(deadline=None, max_examples=10)
@given(walk=moves("Deployment", "Service", "Job", "Pod"))
@example(walk=[edit({"model": {"uri": "pvc://models/bad"}}), *[play] * 4, lose("Service")])
def test_what_serves_goes_on_while_the_newest_model_is_refused(walk: list[Move]) -> None:
    stage = Stage(make_serve(**GOOD))
    for _ in range(6):
        play(stage)
    served = stage.live()
    for move in walk:
        move(stage)
    stage.edit(**{**GOOD, "model": {"uri": "pvc://models/bad"}})
    at_rest(stage)
    assert stage.live() is not None
    assert stage.live() in stage.revisions(), f"{served} served before"
