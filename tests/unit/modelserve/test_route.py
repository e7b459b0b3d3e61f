"""The HTTPRoute of a ModelServe: what it leads where, how it stands, and where it can't be."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_canary import ROUTE, accept, backends
from tests.unit.modelserve.test_rollout import SERVING, standing

from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.decision import Named, Observed, Ref, Unread
from finetune_operator.modelserve.observed import observe

INSIDE = "http://facts.default.svc:8000/v1"


def routed(**route: Any) -> Stage:
    stage = Stage(make_serve(route={**ROUTE, **route}))
    stage.roll_out()
    return stage


def test_a_route_leads_requests_of_the_api_to_what_is_live() -> None:
    stage = Stage(make_serve(route={**ROUTE, "gateway": {"name": "public", "namespace": "infra", "sectionName": "https"}}))
    stage.step()
    assert stage.of("HTTPRoute") == [], "there is nothing yet that it could lead to"
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    stage.settle()
    (body,) = stage.of("HTTPRoute")
    assert body["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert body["spec"] == {
        "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}],
        "hostnames": ["bot.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "backendRefs": [{"name": "facts", "port": 8000, "weight": 1}],
            }
        ],
    }
    assert body["metadata"]["ownerReferences"][0]["uid"] == "serve-uid"
    assert stage.settle().actions == ()


def test_what_a_gateway_is_not_asked_for_is_left_out() -> None:
    (body,) = routed().of("HTTPRoute")
    assert body["spec"]["parentRefs"] == [{"name": "public", "namespace": "infra"}], "the API server takes no null"


@pytest.mark.parametrize(
    ("route", "url"),
    [
        ({}, "https://bot.example.com/v1"),
        ({"scheme": "http"}, "http://bot.example.com/v1"),
        ({"hostname": None}, INSIDE),
    ],
)
def test_status_says_where_to_call_once_a_gateway_has_taken_it(route: Any, url: str) -> None:
    stage = routed(**route)
    assert stage.serve["status"]["url"] == INSIDE
    accept(stage)
    stage.settle()
    assert (stage.serve["status"]["url"], stage.serve["status"]["route"]) == (url, {"accepted": True})
    assert standing(stage) == SERVING


REFUSED = {"reason": "NotAllowedByListeners", "message": "no listener allows it"}


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], "no controller has taken the HTTPRoute; see that the Gateway public is there and allows it"),
        ([("public", "Accepted", "False")], "NotAllowedByListeners: no listener allows it"),
        ([("public", "ResolvedRefs", "False"), ("public", "Accepted", "True")], None),
        ([("another", "Accepted", "True")], "no controller has taken the HTTPRoute"),
        ([("public", "Programmed", "True")], "no controller has taken the HTTPRoute"),
        ([("public", "Accepted", "True")], None),
    ],
)
def test_how_it_stands_is_told_in_the_controllers_words(parents: Any, message: str | None) -> None:
    stage = routed()
    told = [{"parentRef": {"name": n}, "conditions": [{"type": k, "status": s, **REFUSED}]} for n, k, s in parents]
    stage.objects["HTTPRoute", "facts"]["status"] = {"parents": told}
    stage.settle()
    route = stage.serve["status"]["route"]
    assert route["accepted"] is (message is None)
    assert (message or "") in route.get("message", "")
    assert standing(stage) == SERVING, "what serves inside the cluster serves"


def test_a_route_whose_services_were_not_found_is_not_taken() -> None:
    stage = routed()
    conditions = [{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "False", **REFUSED}]
    stage.objects["HTTPRoute", "facts"]["status"] = {"parents": [{"parentRef": {"name": "public"}, "conditions": conditions}]}
    stage.settle()
    assert stage.serve["status"]["route"] == {"accepted": False, "message": "NotAllowedByListeners: no listener allows it"}


def test_where_the_cluster_has_no_such_kind_nothing_is_asked_of_it() -> None:
    stage = Stage(make_serve(route=ROUTE))
    stage.unserved = frozenset({"HTTPRoute"})
    stage.roll_out()
    assert (stage.of("HTTPRoute"), standing(stage)) == ([], SERVING)
    assert "install the Gateway API" in stage.serve["status"]["route"]["message"]
    stage.unserved = frozenset()
    stage.settle()
    assert backends(stage) == {"facts": 1}


def test_an_edit_takes_the_route_away() -> None:
    stage = routed()
    del stage.serve["spec"]["route"]
    stage.edit()
    stage.settle()
    assert (stage.of("HTTPRoute"), "route" in stage.serve["status"]) == ([], False)


def test_a_route_of_somebody_else_is_left_alone() -> None:
    stage = Stage(make_serve(route=ROUTE))
    theirs = {"kind": "HTTPRoute", "metadata": {"name": "facts"}, "spec": {"rules": []}}
    stage.put(theirs)
    stage.roll_out()
    assert stage.objects["HTTPRoute", "facts"] == theirs
    route = stage.serve["status"]["route"]
    assert "an HTTPRoute facts exists that this ModelServe does not own" in route["message"]
    assert route["accepted"] is False
    del stage.objects["HTTPRoute", "facts"]
    stage.settle()
    assert backends(stage) == {"facts": 1}


def test_whose_the_name_is_is_asked_only_while_none_of_ours_is_known() -> None:
    serve = ModelServe.model_validate(make_serve(route=ROUTE))
    ref = Ref("HTTPRoute", "facts")
    known = Named({Ref("Service", "facts"): None}, [ref])
    with pytest.raises(Unread):
        observe(serve, Observed({}, known))
    meta = {"name": "facts", "ownerReferences": [{"kind": "ModelServe", "uid": "serve-uid"}]}
    body = {"kind": "HTTPRoute", "metadata": meta, "spec": {}}
    assert observe(serve, Observed({"HTTPRoute": (body,)}, known)).may_route
    assert observe(serve, Observed({}, {Ref("Service", "facts"): None, ref: body})).may_route, "made, and not told of yet"


@pytest.mark.parametrize(
    ("weights", "strategy", "sentence"),
    [
        ([1, 100], "Surge", None),
        ([10, 10], "Surge", "must rise"),
        ([50, 25], "Auto", "must rise"),
        ([10], "Recreate", "has nobody to share the traffic with"),
    ],
)
def test_steps_rise_and_go_beside_the_live_revision(weights: list[int], strategy: str, sentence: str | None) -> None:
    rollout = {"strategy": strategy, "canary": {"steps": [{"weight": weight} for weight in weights]}}
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://m/q4"}, "engine": {"type": "VLLM"}, "rollout": rollout})
    found = broken_by(spec)
    assert len(found) == (sentence is not None)
    assert all(sentence in said for said in found if sentence)
