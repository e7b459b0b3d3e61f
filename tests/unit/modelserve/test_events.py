"""What a change of a ModelServe's status is worth an event for."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.modelserve import CanaryShare, ModelServeStatus, Revision, RevisionState, ShareBy
from finetune_operator.api.rollout import Strategy
from finetune_operator.meta import Condition
from finetune_operator.modelserve.status import events

ONE = Revision(name="r1", state=RevisionState.LOADING, model_uri="pvc://m/one")
REFUSED = ONE.model_copy(update={"state": RevisionState.REFUSED, "reason": "GateFailed", "message": "no answer"})
LIVE = ONE.model_copy(update={"state": RevisionState.LIVE})
PASSED = ONE.model_copy(update={"state": RevisionState.PASSED})
STOPS = ONE.model_copy(update={"strategy": Strategy.RECREATE, "strategy_message": "nothing answers"})


def share(since: str | None) -> CanaryShare:
    return CanaryShare(step=1, weight=25, share=25, by=ShareBy.REPLICAS, since=since)


def changed(revision: Revision, **fields: Any) -> Revision:
    return revision.model_copy(update=fields)


def stalled(reason: str) -> list[Condition]:
    return [Condition(type="Stalled", status="True", reason=reason, message=f"{reason} it is")]


def status(**fields: Any) -> ModelServeStatus:
    return ModelServeStatus(**fields)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (status(), status(), []),
        (status(), status(candidate=ONE), ["RevisionLoading"]),
        (status(candidate=ONE), status(candidate=ONE), []),
        (status(candidate=ONE), status(candidate=changed(ONE, name="r2")), ["RevisionLoading"]),
        (status(candidate=ONE), status(candidate=changed(ONE, trial="again")), ["RevisionLoading"]),
        (status(), status(candidate=REFUSED), ["RevisionRefused"]),
        (status(candidate=ONE), status(candidate=REFUSED), ["RevisionRefused"]),
        (status(candidate=REFUSED), status(candidate=REFUSED), []),
        (status(candidate=REFUSED), status(candidate=changed(REFUSED, trial="again")), ["RevisionRefused"]),
        (status(), status(live=LIVE), ["RevisionLive"]),
        (status(live=LIVE), status(live=LIVE), []),
        (status(live=LIVE), status(live=changed(LIVE, name="r2")), ["RevisionLive"]),
        (status(live=LIVE), status(), []),
        (status(), status(conditions=stalled("NameTaken")), ["NameTaken"]),
        (status(conditions=stalled("NameTaken")), status(conditions=stalled("NameTaken")), []),
        (status(conditions=stalled("NameTaken")), status(conditions=stalled("JobFailed")), ["JobFailed"]),
        (status(candidate=ONE), status(candidate=REFUSED, conditions=stalled("GateFailed")), ["RevisionRefused"]),
        (status(candidate=ONE), status(candidate=STOPS), ["Recreating"]),
        (status(candidate=STOPS), status(candidate=STOPS), []),
        (status(candidate=changed(STOPS, name="r0")), status(candidate=STOPS), ["RevisionLoading", "Recreating"]),
        (status(candidate=ONE), status(candidate=PASSED), ["AwaitingPromotion"]),
        (status(), status(candidate=PASSED), ["RevisionLoading", "AwaitingPromotion"]),
        (status(candidate=PASSED), status(candidate=PASSED), []),
        (status(candidate=ONE), status(candidate=ONE, canary=share(None)), []),
        (status(candidate=ONE), status(candidate=ONE, canary=share("1")), ["Canary"]),
        (status(candidate=ONE, canary=share(None)), status(candidate=ONE, canary=share("1")), ["Canary"]),
        (status(candidate=ONE, canary=share("1")), status(candidate=ONE, canary=share("1")), []),
        (status(candidate=ONE, canary=share("1")), status(candidate=ONE, canary=share("2")), ["Canary"]),
    ],
)
def test_events(before: ModelServeStatus, after: ModelServeStatus, told: list[str]) -> None:
    assert [event.reason for event in events(before, after)] == told
    good = {"RevisionLoading", "RevisionLive", "AwaitingPromotion", "Canary"}
    assert [event.warning for event in events(before, after)] == [reason not in good for reason in told]


def test_they_say_which_revision_and_why() -> None:
    after = status(candidate=REFUSED, live=LIVE, conditions=[])
    assert [event.message for event in events(status(candidate=ONE), after)] == [
        "revision r1, GateFailed: no answer",
        "revision r1 of pvc://m/one serves now",
    ]
    (loading,) = events(status(), status(candidate=ONE))
    assert loading.message == "revision r1 of pvc://m/one is started"
    (stuck,) = events(status(), status(conditions=stalled("NameTaken")))
    assert stuck.message == "NameTaken it is"
