"""How the HTTPRoute of a ModelServe stands, and what it leads to, as the API server sends it. Pure; around.py makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_operator.api.access import Route
from finetune_operator.api.modelserve import ModelServe, RouteStatus
from finetune_operator.decision import Observed, Ref
from finetune_operator.meta import Object
from finetune_operator.modelserve.deployed import revision_of
from finetune_operator.names import object_name

API = "/v1"  # of the engines, to those outside: their metrics and health are nobody's business there
NOT_SERVED = "the cluster serves no HTTPRoute of gateway.networking.k8s.io/v1; install the Gateway API and a controller of it"


def url(wanted: Route) -> str | None:
    """OpenAI API as those outside call it."""
    return None if wanted.hostname is None else f"{wanted.scheme.value}://{wanted.hostname}{API}"


def revisions(serve: ModelServe, routes: Sequence[Object], deployments: Sequence[Object]) -> Iterator[str]:
    """Revisions that our route leads to by their own Services."""
    named = {
        backend["name"]
        for body in routes
        for rule in body["spec"].get("rules") or []
        for backend in rule.get("backendRefs") or []
    }
    for deployment in deployments:
        if object_name(serve.metadata.name, revision := revision_of(deployment)) in named:
            yield revision


def refs(serve: ModelServe) -> tuple[Ref, ...]:
    """What to read by name: somebody else may have the name."""
    return () if serve.spec.route is None else (Ref("HTTPRoute", object_name(serve.metadata.name)),)


def obstacle(serve: ModelServe, observed: Observed, routes: Sequence[Object]) -> RouteStatus | None:
    """Why the route that the spec asks for can't be made."""
    if serve.spec.route is None or routes:
        return None
    if "HTTPRoute" in observed.unserved:
        return RouteStatus(accepted=False, message=NOT_SERVED)
    (ref,) = refs(serve)
    found = observed.named.get(ref)  # the one that we made may not have been told of yet
    owners = [] if found is None else found["metadata"].get("ownerReferences") or []
    if found is None or any(owner["uid"] == serve.metadata.uid for owner in owners):
        return None
    text = f"an HTTPRoute {ref.name} exists that this ModelServe does not own; delete it, or rename the ModelServe"
    return RouteStatus(accepted=False, message=text)


def standing(wanted: Route, routes: Sequence[Object]) -> RouteStatus:
    """How the route stands that the spec asks for, as the gateway's controller tells."""
    parents = [p for body in routes for p in (body.get("status") or {}).get("parents") or []]
    ours = [p for p in parents if p["parentRef"].get("name") == wanted.gateway.name]
    told = [{c["type"]: c for c in p.get("conditions") or []} for p in ours]
    if any(_is(c, "Accepted", "True") and not _is(c, "ResolvedRefs", "False") for c in told):
        return RouteStatus(accepted=True)
    wrong = next((c[name] for c in told for name in ("Accepted", "ResolvedRefs") if _is(c, name, "False")), None)
    if wrong is not None:
        return RouteStatus(accepted=False, message=f"{wrong.get('reason')}: {wrong.get('message')}")
    text = f"no controller has taken the HTTPRoute; see that the Gateway {wanted.gateway.name} is there and allows it"
    return RouteStatus(accepted=False, message=text)


def _is(conditions: Object, name: str, truth: str) -> bool:
    return bool((conditions.get(name) or {}).get("status") == truth)
